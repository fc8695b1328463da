"use strict";
// Tables marked `sortable` are ordered by the column whose heading is pressed; again turns the order round. Values are in
// data-sort where the text is not what counts; what has none stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numeric = head.classList.contains("n");
      const value = row => {
        const cell = row.cells[place], text = cell.dataset.sort ?? "";
        return text === "" ? null : numeric ? Number(text) : text;
      };
      const rows = [...body.rows].map((row, at) => ({row, at, value: value(row)}));
      rows.sort((a, b) => {
        if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.at - b.at;
        const order = numeric ? a.value - b.value : a.value.localeCompare(b.value, "en", {numeric: true});
        return (down ? -order : order) || a.at - b.at;
      });
      body.append(...rows.map(one => one.row));
    });
  });
}
