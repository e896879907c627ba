// Formulas of pages (\( \), \[ \]) and of notebooks ($ $, $$ $$), by the KaTeX beside this file.
function typeset(root) {
  renderMathInElement(root, {
    delimiters: [
      {left: "\\[", right: "\\]", display: true},
      {left: "\\(", right: "\\)", display: false},
      {left: "$$", right: "$$", display: true},
      {left: "$", right: "$", display: false},
    ],
    ignoredTags: ["script", "noscript", "style", "textarea", "pre", "code", "option"],
    throwOnError: false,
  });
}
document.addEventListener("DOMContentLoaded", () => typeset(document.querySelector("main") || document.body));
