// a click on a heading sorts its table, group by group; printing opens every section, so that nothing is left out; a link opens what it leads to
const number = s => { const m = s.replace(/−/g, "-").replace(/,/g, "").match(/[+-]?\d+(\.\d+)?/); return /^[<+\-−\d.]/.test(s) && m ? parseFloat(m[0]) : NaN; };
const order = (a, b) => { const x = number(a), y = number(b); return isNaN(x) || isNaN(y) ? (isNaN(x) - isNaN(y)) || a.localeCompare(b) : x - y; };
const sort = button => {
  const th = button.parentNode, table = th.closest("table"), k = [...th.parentNode.children].indexOf(th);
  const down = th.getAttribute("aria-sort") !== "descending", text = row => (row.cells[k]?.textContent ?? "").trim();
  table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", down ? "descending" : "ascending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter(row => !row.classList.contains("group"));
    const empty = rows.filter(row => text(row) === ""), full = rows.filter(row => text(row) !== "");
    full.sort((a, b) => order(text(a), text(b)) * (down ? -1 : 1));
    body.append(...full, ...empty);
  }
};
document.querySelectorAll("thead span").forEach(button => {
  button.addEventListener("click", () => sort(button));
  button.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(button); } });
});
const open = () => document.querySelectorAll("details").forEach(d => { d.open = true; });
window.addEventListener("beforeprint", open);
const reach = () => document.getElementById(decodeURIComponent(location.hash.slice(1)))?.querySelectorAll("details").forEach(d => { d.open = true; });
window.addEventListener("hashchange", reach); reach();
