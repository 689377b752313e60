"use strict";
// The page works without this script, which adds dropping of images and a progress message.
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
    const files = [...input.files], name = files.length === 1 ? files[0].name : `${files.length} images`;
    const size = files.reduce((sum, file) => sum + file.size, 0), most = Number(form.dataset.bytes);
    if (size <= most && files.length <= Number(form.dataset.files)) return work(name);
    event.preventDefault();
    state.textContent = size > most
      ? `${name}: ${size.toLocaleString("en")} bytes; at most ${most.toLocaleString("en")} are allowed.`
      : `${name}; at most ${form.dataset.files} are allowed.`;
  });
  document.addEventListener("dragover", dragged);
  document.addEventListener("dragleave", dragged);
  document.addEventListener("drop", event => {
    if (!dragged(event) || button.disabled) return;
    input.files = event.dataTransfer.files;
    form.requestSubmit();
  });
  window.addEventListener("pageshow", rest);
  form.querySelector(".drop").hidden = false;
})();
