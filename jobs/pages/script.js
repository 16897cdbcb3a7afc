"use strict";
(() => {
  const dialog = document.querySelector("dialog");
  const looks = [...document.querySelectorAll("button.look")];
  if (!dialog || !looks.length) return;
  const root = document.documentElement;
  const picture = dialog.querySelector(".stage img");
  const words = dialog.querySelector(".words");
  const switches = [...document.querySelectorAll("[data-do=mask]")];
  let masked = true;
  let shown = 0;

  const draw = () => {
    const look = looks[shown];
    const plain = look.querySelector(".plain");
    const source = masked || !plain ? look.querySelector(".masked") : plain;
    picture.src = source.src;
    picture.alt = source.alt;
    words.replaceChildren(...look.parentElement.querySelector("figcaption").cloneNode(true).childNodes);
    dialog.querySelector(".place").textContent = `${shown + 1} of ${looks.length}`;
  };
  const toggle = () => {
    masked = !masked;
    root.classList.toggle("unmasked", !masked);
    switches.forEach((button) => button.setAttribute("aria-pressed", String(masked)));
    if (dialog.open) draw();
  };
  const step = (by) => {
    shown = (shown + by + looks.length) % looks.length;
    draw();
  };
  looks.forEach((look, number) => look.addEventListener("click", () => {
    shown = number;
    draw();
    dialog.showModal();
  }));
  switches.forEach((button) => button.addEventListener("click", toggle));
  dialog.querySelector("[data-do=before]").addEventListener("click", () => step(-1));
  dialog.querySelector("[data-do=next]").addEventListener("click", () => step(1));
  dialog.querySelector("[data-do=close]").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => looks[shown].focus());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "m" || event.key === "M") toggle();
    if (!dialog.open) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
})();
