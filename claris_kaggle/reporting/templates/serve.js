"use strict";
// The page works without this: here an image can be dropped, and one sees that it is being looked at.
(() => {
  const form = document.querySelector("form"), input = document.getElementById("file");
  const state = document.getElementById("state"), button = form.querySelector("button");
  let ticking = 0;

  function rest() {
    clearInterval(ticking);
    button.disabled = false;
    form.removeAttribute("aria-busy");
    state.textContent = "";
  }

  function work(name) {
    const seconds = document.createElement("span"), begin = Date.now();
    seconds.ariaHidden = "true";
    state.textContent = `Classifying ${name}`;
    state.append(seconds);
    ticking = setInterval(() => { seconds.textContent = `, ${Math.round((Date.now() - begin) / 1000)} s`; }, 1000);
    button.disabled = true;
    form.setAttribute("aria-busy", "true");
  }

  function dragged(event) {
    const files = event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    if (files) event.preventDefault();
    document.body.classList.toggle("over", files && event.type === "dragover");
    return files;
  }

  form.addEventListener("submit", event => {
    const file = input.files[0], most = Number(form.dataset.bytes);
    if (file.size <= most) return work(file.name);
    event.preventDefault();
    state.textContent = `${file.name} has ${file.size.toLocaleString("en")} bytes; at most ${most.toLocaleString("en")} are allowed.`;
  });
  document.addEventListener("dragover", dragged);
  document.addEventListener("dragleave", dragged);
  document.addEventListener("drop", event => {
    if (!dragged(event) || button.disabled) return;
    if (event.dataTransfer.files.length === 1) {
      input.files = event.dataTransfer.files;
      form.requestSubmit();
    } else state.textContent = "One image at a time, please.";
  });
  window.addEventListener("pageshow", rest);
  form.querySelector(".drop").hidden = false;
})();
