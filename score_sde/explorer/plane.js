// A plane on a canvas: shades, arrows, paths and points that Python sends; clicks and strokes back.
// value: {extent, shade, arrows: [x, y, u, v], paths: [[[x, y], ...]], points: [[x, y]], drawn}
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d"), draws = props.draws;
let scene = {}, shade = null, stroke = false;

function paint() {
  const size = canvas.clientWidth || 480, dense = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(size * dense);
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  const e = scene.extent || 3, at = ([x, y]) => [(x / e + 1) * size / 2, (1 - y / e) * size / 2];
  pen.fillStyle = "#f7f9fc";
  pen.fillRect(0, 0, size, size);
  if (shade) pen.drawImage(shade, 0, 0, size, size);
  pen.strokeStyle = pen.fillStyle = "#20242b";
  for (const [x, y, u, v] of scene.arrows || []) {
    const [a, b] = at([x - u / 2, y - v / 2]), [c, d] = at([x + u / 2, y + v / 2]);
    const length = Math.hypot(c - a, d - b), k = Math.min(5, length / 2) / (length || 1);
    pen.lineWidth = 1.1;
    pen.beginPath();
    pen.moveTo(a, b);
    pen.lineTo(c, d);
    pen.lineTo(c - k * (c - a) + k * (d - b) / 2, d - k * (d - b) - k * (c - a) / 2);
    pen.moveTo(c, d);
    pen.lineTo(c - k * (c - a) - k * (d - b) / 2, d - k * (d - b) + k * (c - a) / 2);
    pen.stroke();
  }
  pen.fillStyle = "rgba(3, 149, 236, 0.55)";
  for (const point of scene.points || []) {
    const [a, b] = at(point);
    pen.fillRect(a - 1.5, b - 1.5, 3, 3);
  }
  pen.fillStyle = "#20242b";
  for (const point of scene.drawn || []) {
    const [a, b] = at(point);
    pen.fillRect(a - 1.5, b - 1.5, 3, 3);
  }
  for (const { colour, points } of scene.paths || []) {
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = 2;
    pen.beginPath();
    points.forEach((point, i) => (i ? pen.lineTo(...at(point)) : pen.moveTo(...at(point))));
    pen.stroke();
    pen.beginPath();
    pen.arc(...at(points[points.length - 1]), 4, 0, 7);
    pen.fill();
  }
}

function show() {
  scene = props.value ? JSON.parse(props.value) : {};
  shade = null;
  if (scene.shade) {
    const image = new Image();
    image.onload = () => { shade = image; paint(); };
    image.src = scene.shade;
  }
  paint();
}

function place(event) {
  const box = canvas.getBoundingClientRect(), e = scene.extent || 3;
  return [(2 * (event.clientX - box.left) / box.width - 1) * e,
          (1 - 2 * (event.clientY - box.top) / box.height) * e];
}

function spray(event) {
  const [x, y] = place(event);
  scene.drawn = scene.drawn || [];
  for (let i = 0; i < 6 && scene.drawn.length < 4000; i++) {
    const r = 0.12 * Math.sqrt(-2 * Math.log(1 - Math.random())), a = 2 * Math.PI * Math.random();
    scene.drawn.push([x + r * Math.cos(a), y + r * Math.sin(a)].map((v) => Math.round(v * 1e3) / 1e3));
  }
  paint();
}

canvas.addEventListener("pointerdown", (event) => {
  if (!draws) { trigger("click", { at: place(event) }); return; }
  stroke = true;
  canvas.setPointerCapture(event.pointerId);
  spray(event);
});
canvas.addEventListener("pointermove", (event) => { if (stroke) spray(event); });
canvas.addEventListener("pointerup", () => {
  if (!stroke) return;
  stroke = false;
  props.value = JSON.stringify(scene);
});
watch("value", show);
new ResizeObserver(paint).observe(canvas);
show();
