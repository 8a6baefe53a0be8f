// Values under the pointer. Without scripts the page shows all but these.
for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot");
  const cursor = chart.querySelector(".cursor");
  const tip = chart.querySelector(".tip");
  const lines = JSON.parse(chart.querySelector("script").textContent).filter((line) => line.points.length);
  const [low, high] = [Number(chart.dataset.x0), Number(chart.dataset.x1)];
  const nearest = (points, step) => {
    let [from, to] = [0, points.length - 1];
    while (from < to) {
      const middle = (from + to) >> 1;
      if (points[middle][0] < step) from = middle + 1;
      else to = middle;
    }
    const before = points[Math.max(0, from - 1)];
    return step - before[0] < points[from][0] - step ? before : points[from];
  };
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const [step] = nearest(lines[0].points, low + share * (high - low));
    tip.replaceChildren();
    tip.append(Object.assign(document.createElement("b"), { textContent: `step ${step.toLocaleString("en")}` }));
    for (const line of lines) {
      const [at, value] = nearest(line.points, step);
      const row = document.createElement("div");
      row.textContent = `${line.name} ${value}${at === step ? "" : ` (step ${at.toLocaleString("en")})`}`;
      tip.append(row);
    }
    cursor.hidden = tip.hidden = false;
    const left = ((step - low) / (high - low)) * box.width;
    cursor.style.left = `${left}px`;
    tip.style.left = left > box.width / 2 ? `${left - tip.offsetWidth - 12}px` : `${left + 12}px`;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => {
    cursor.hidden = tip.hidden = true;
  });
}
