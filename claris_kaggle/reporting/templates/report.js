"use strict";
// The page is complete without this script. It hides and shows single curves and reads values at the pointer.
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  // Return the points of a curve in the coordinates of its SVG.
  function pointsOf(group) {
    const found = [...group.querySelectorAll("use")].map((mark) => [+mark.getAttribute("x"), +mark.getAttribute("y")]);
    const line = group.querySelector("path[clip-path]")?.getAttribute("d") ?? "";
    for (const [, x, y] of line.matchAll(/[ML] *([-\d.]+) +([-\d.]+)/g)) found.push([+x, +y]);
    return found;
  }

  // Return the name in an entry of a legend, which may begin with a score.
  function nameOf(label) {
    return label.replace(/^[\d.]+ +/, "");
  }

  // Return the button that hides and shows the curves of one series.
  function toggle(groups, label) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = nameOf(label);
    button.style.setProperty("--series", groups[0].querySelector("path[clip-path]").style.stroke);
    button.ariaPressed = "true";
    button.addEventListener("click", () => {
      button.ariaPressed = button.ariaPressed === "true" ? "false" : "true";
      for (const group of groups) group.style.display = button.ariaPressed === "true" ? "" : "none";
    });
    return button;
  }

  // Return the visible point that is nearest to the pointer, in the coordinates of the SVG.
  function nearest(curves, at) {
    let best = null;
    for (const { groups, points, label } of curves) {
      if (groups[0].style.display === "none") continue;
      for (const [x, y] of points) {
        const distance = Math.hypot(x - at.x, y - at.y);
        if (!best || distance < best.distance) best = { x, y, label, distance };
      }
    }
    return best;
  }

  for (const holder of document.querySelectorAll("[data-plot]")) {
    const svg = holder.querySelector("svg"), plot = JSON.parse(holder.dataset.plot), [left, top, width, height] = plot.box;
    const curves = Object.entries(plot.series).map(([number, label]) => {
      const groups = [...svg.querySelectorAll(`[data-series="${number}"]`)];
      const inside = ([x, y]) => x > left - 2 && x < left + width + 2 && y > top - 2 && y < top + height + 2;
      return { label, groups, points: groups.flatMap(pointsOf).filter(inside) };
    });
    if (curves.length > 1) {
      const row = document.createElement("div");
      row.className = "series";
      row.role = "group";
      row.ariaLabel = "Curves shown";
      row.append("Show: ", ...curves.map((curve) => toggle(curve.groups, curve.label)));
      holder.after(row);
    }
    const reading = document.createElement("p"), hint = "Point at a curve to read its values.", dot = document.createElementNS(SVG, "circle");
    reading.className = "reading";
    reading.textContent = hint;
    holder.parentElement.append(reading);
    dot.setAttribute("r", "3");
    dot.setAttribute("fill", "var(--accent)");

    svg.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const found = nearest(curves, at);
      if (!found) return;
      const x = plot.x[0] + (found.x - left) / width * (plot.x[1] - plot.x[0]);
      const y = plot.y[0] + (top + height - found.y) / height * (plot.y[1] - plot.y[0]);
      dot.setAttribute("cx", found.x);
      dot.setAttribute("cy", found.y);
      svg.append(dot);
      reading.textContent = `${nameOf(found.label)}: ${plot.across} ${+x.toFixed(3)}, ${plot.up} ${y.toFixed(3)}`;
    });
    svg.addEventListener("pointerleave", () => { dot.remove(); reading.textContent = hint; });
  }
})();
