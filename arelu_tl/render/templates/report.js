"use strict";
// Sort a table by a click on a heading, or by Enter or space on it; what has no value goes last in either direction.
(function () {
  function key(row, column) {
    var cell = row.cells[column];
    return cell.hasAttribute("data-sort") ? cell.getAttribute("data-sort") : cell.textContent;
  }
  function compare(a, b, numeric, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (numeric ? (Number(a) > Number(b)) - (Number(a) < Number(b)) : a.localeCompare(b, undefined, { numeric: true }));
  }
  function sort(table, heading, column) {
    var sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    var body = table.tBodies[0];
    var rows = Array.from(body.rows).map(function (row) { return [key(row, column), row]; });
    var numeric = rows.every(function (row) { return row[0] === "" || !Number.isNaN(Number(row[0])); });
    rows.sort(function (a, b) { return compare(a[0], b[0], numeric, sign); });
    table.querySelectorAll("th[aria-sort]").forEach(function (other) { other.removeAttribute("aria-sort"); });
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    rows.forEach(function (row) { body.appendChild(row[1]); });
  }
  document.querySelectorAll("table").forEach(function (table) {
    if (!table.tBodies[0] || table.tBodies[0].rows.length < 2) return;
    Array.from(table.tHead.rows[0].cells).forEach(function (heading, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", function () { sort(table, heading, column); });
    });
  });
  // Paper cannot be clicked: everything folded is shown on it.
  var folded = [];
  window.addEventListener("beforeprint", function () {
    folded = Array.from(document.querySelectorAll("details:not([open])"));
    folded.forEach(function (part) { part.open = true; });
  });
  window.addEventListener("afterprint", function () {
    folded.forEach(function (part) { part.open = false; });
  });
})();
