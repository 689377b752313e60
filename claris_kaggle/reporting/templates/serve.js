"use strict";
// The page works without this script, which adds drag and drop, the progress of a classification, and a button that cancels it.
(() => {
  let form, input, state, progress, cancel, button, request = null;

  // Find the parts of the form. Each result comes with a new form.
  function bind() {
    form = document.querySelector("form");
    [input, state, progress, cancel] = ["file", "state", "progress", "cancel"].map(id => document.getElementById(id));
    button = form.querySelector("button");
    form.addEventListener("submit", submitted);
    cancel.addEventListener("click", () => request?.abort());
    form.querySelector(".drop").hidden = false;
  }

  function setBusy(busy) {
    button.disabled = busy;
    progress.hidden = cancel.hidden = !busy;
    form.setAttribute("aria-busy", String(busy));
  }

  function showProgress({ share, text }) {
    progress.querySelector("progress").value = share;
    progress.querySelector("span").textContent = text;
  }

  // Replace the form by the result. The first result adds an entry to the browser's history, later ones replace it.
  function showPage(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const main = document.adoptNode(page.querySelector("main")), first = main.querySelector("[autofocus]");
    first.removeAttribute("autofocus");
    document.title = page.title;
    document.querySelector("main").replaceWith(main);
    history[history.state ? "replaceState" : "pushState"]("result", "", "/");
    bind();
    first.focus();
  }

  // Return the last complete line of an answer, which may still be growing.
  function lastLine() {
    const text = request.responseText;
    if (request.getResponseHeader("content-type") !== "application/x-ndjson") return { error: text };
    const lines = text.split("\n");
    return lines.length > 1 ? JSON.parse(lines.at(-2)) : {};
  }

  function finish(message) {
    setBusy(false);
    state.textContent = message;
    button.focus();
  }

  // Send the form, and show the progress and then the page.
  function send(name) {
    state.textContent = `Classifying ${name}`;
    showProgress({ share: 0, text: "" });
    setBusy(true);
    request = new XMLHttpRequest();
    request.addEventListener("progress", () => { if ("share" in lastLine()) showProgress(lastLine()); });
    request.addEventListener("load", () => {
      const { page, error } = lastLine();
      finish(error ?? "");
      if (page) showPage(page);
    });
    request.addEventListener("error", () => finish("No answer. Is claris serve still running?"));
    request.addEventListener("abort", () => finish("Cancelled."));
    request.open("POST", "/progress");
    request.send(new FormData(form));
  }

  function dragged(event) {
    const files = event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    if (files) event.preventDefault();
    document.body.classList.toggle("over", files && event.type === "dragover");
    return files;
  }

  function submitted(event) {
    event.preventDefault();
    const files = [...input.files], name = files.length === 1 ? files[0].name : `${files.length} images`;
    const size = files.reduce((sum, file) => sum + file.size, 0), most = Number(form.dataset.bytes);
    if (size <= most && files.length <= Number(form.dataset.files)) return send(name);
    state.textContent = size > most
      ? `${name}: ${size.toLocaleString("en")} bytes; at most ${most.toLocaleString("en")} are allowed.`
      : `${name}; at most ${form.dataset.files} are allowed.`;
  }

  document.addEventListener("dragover", dragged);
  document.addEventListener("dragleave", dragged);
  document.addEventListener("drop", event => {
    if (!dragged(event) || button.disabled) return;
    input.files = event.dataTransfer.files;
    form.requestSubmit();
  });
  window.addEventListener("pagehide", () => request?.abort());
  window.addEventListener("popstate", () => location.reload());
  bind();
})();
