// A picture to paint a mask on: what is painted over is to be filled in.
// value: {picture: a data URL, height, width, hidden: rows of 0 and 1 as text, brush}
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let scene = {}, picture = null, hidden = [], stroke = false;

function paint() {
  const { height = 28, width = 28 } = scene, size = canvas.clientWidth || 320;
  const dense = window.devicePixelRatio || 1, one = size / width;
  canvas.width = Math.round(size * dense);
  canvas.height = Math.round(one * height * dense);
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "#888";
  pen.fillRect(0, 0, size, one * height);
  if (picture) pen.drawImage(picture, 0, 0, size, one * height);
  pen.fillStyle = "rgba(254, 83, 34, 0.8)";
  hidden.forEach((is, i) => {
    if (is) pen.fillRect((i % width) * one, Math.floor(i / width) * one, one + 0.5, one + 0.5);
  });
}

function show() {
  scene = props.value ? JSON.parse(props.value) : {};
  const n = (scene.height || 28) * (scene.width || 28);
  hidden = scene.hidden ? Array.from(scene.hidden, (c) => c === "1") : new Array(n).fill(false);
  picture = null;
  if (scene.picture) {
    const image = new Image();
    image.onload = () => { picture = image; paint(); };
    image.src = scene.picture;
  }
  paint();
}

function brush(event) {
  const { height = 28, width = 28 } = scene, box = canvas.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * width;
  const y = (event.clientY - box.top) / box.height * height, r = Math.max(1, width / 14);
  for (let i = 0; i < hidden.length; i++)
    if (Math.hypot((i % width) + 0.5 - x, Math.floor(i / width) + 0.5 - y) <= r) hidden[i] = true;
  paint();
}

canvas.addEventListener("pointerdown", (event) => {
  if (!scene.picture) return;
  stroke = true;
  canvas.setPointerCapture(event.pointerId);
  brush(event);
});
canvas.addEventListener("pointermove", (event) => { if (stroke) brush(event); });
canvas.addEventListener("pointerup", () => {
  if (!stroke) return;
  stroke = false;
  scene.hidden = hidden.map((is) => (is ? "1" : "0")).join("");
  props.value = JSON.stringify(scene);
});
watch("value", show);
new ResizeObserver(paint).observe(canvas);
show();
