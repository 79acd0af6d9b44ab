"use strict";
// Sliders between two of the pictures that the page has. Without scripts the pictures themselves remain.
(() => {
  const pairs = [
    ["before", "after", "Before and after"],
    ["fixed", "after", "Fixed and warped"],
    ["difference-before", "difference-after", "Differences before and after"],
  ];
  const make = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  document.documentElement.classList.add("scripted");

  const sliders = [...document.querySelectorAll(".slice")].map((slice) => {
    const row = slice.querySelector(".row");
    const role = (name) => row.querySelector(`[data-role="${name}"]`);
    const title = (name) => role(name).querySelector("figcaption").textContent;
    const under = role("before").querySelector("img").cloneNode();
    const over = make("img", { className: "over", alt: "" });
    const cut = make("span", { className: "cut" });
    const edges = [...role("before").querySelectorAll(".edge")].map((edge) => edge.cloneNode(true));
    const frame = make("div", { className: "frame" }, under, over, cut, ...edges);
    const left = make("span"), right = make("span");
    const range = make("input", { type: "range", min: 0, max: 100, value: 50, step: 1 });
    const caption = make("figcaption", { className: "sides" }, left, right);
    const compare = make("figure", { className: "compare" }, frame, range, caption);

    const move = () => {
      over.style.clipPath = `inset(0 0 0 ${range.value}%)`;
      cut.style.left = `${range.value}%`;
      range.setAttribute("aria-valuetext", `${range.value} % of the width: ${left.textContent}`);
    };
    const show = ([first, second]) => {
      const image = role(first).querySelector("img");
      under.src = image.src;
      under.alt = image.alt;
      over.src = role(second).querySelector("img").src;
      left.textContent = title(first);
      right.textContent = title(second);
      range.setAttribute(
        "aria-label",
        `${slice.dataset.name}: ${title(first)} to the left of the line, ${title(second)} to its right`,
      );
      move();
    };
    const drag = (event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      event.preventDefault();
      const box = frame.getBoundingClientRect();
      range.value = (100 * (event.clientX - box.left)) / box.width;
      move();
    };
    range.addEventListener("input", move);
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      drag(event);
    });
    frame.addEventListener("pointermove", drag);
    const columns = make("div", { className: "columns" });
    row.replaceWith(columns);
    columns.append(compare, row);
    return show;
  });

  const choices = make("fieldset", {}, make("legend", { textContent: "The sliders compare" }));
  pairs.forEach((pair, k) => {
    const radio = make("input", { type: "radio", name: "pair", checked: k === 0 });
    radio.addEventListener("change", () => sliders.forEach((show) => show(pair)));
    choices.append(make("label", {}, radio, ` ${pair[2]}`));
  });
  document.getElementById("modes").append(choices);
  sliders.forEach((show) => show(pairs[0]));

  for (const code of document.querySelectorAll("pre")) {
    const button = make("button", { type: "button", className: "copy", textContent: "Copy" });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // no clipboard: the text is marked, to be copied by hand
        button.textContent = "Marked";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    code.previousElementSibling.append(" ", button);
  }
})();
