// Sorts a table by the column whose head is clicked: numbers by value, words by alphabet.
for (const head of document.querySelectorAll("th[data-sort]")) {
  head.tabIndex = 0;
  const sort = () => {
    const table = head.closest("table");
    const column = [...head.parentNode.children].indexOf(head);
    const descending = head.getAttribute("aria-sort") !== "descending";
    const sign = descending ? -1 : 1;
    const key = (row) => row.children[column].dataset.value ?? row.children[column].textContent;
    const compare = (a, b) => {
      const [left, right] = [key(a), key(b)];
      if (head.dataset.sort === "text") return sign * left.localeCompare(right, undefined, { numeric: true });
      const [x, y] = [Number(left), Number(right)];
      if (left === "" || right === "") return (left === "") - (right === "");
      return sign * (x - y);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
  });
}
