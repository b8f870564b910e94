// What the model answered: few values as bars, with the names of classes where it gives them, the rest as JSON.
const BARS = 24, ROWS = 8, CHARACTERS = 6000;

function answered(content, seconds, timing) {
  const outputs = content.outputs, drawn = [], rest = [];
  for (const [name, value] of Object.entries(outputs)) {
    if (/_(label|index)$/.test(name) && name.replace(/_(label|index)$/, "") in outputs) continue;
    const seen = drawing(value, outputs[`${name}_label`] || outputs[`${name}_index`]);
    (seen ? drawn : rest).push(make("div", {}, make("h3", {}, make("code", { textContent: name })), seen || written(value)));
  }
  const facts = [`${duration(seconds)} there and back`];
  for (const part of (timing || "").split(", ")) {
    const found = part.match(/^(prepare|queue|infer);dur=([\d.]+)$/);
    if (found) facts.push(`${{ prepare: "preparing", queue: "waiting", infer: "the model" }[found[1]]} ${duration(found[2] / 1000)}`);
  }
  const raw = make("details", {}, make("summary", { textContent: "JSON" }), written(content));
  return [make("p", { className: "quiet", textContent: facts.join(" · ") }), ...drawn, ...rest, raw];
}

// Draws one row or a few; gives nothing where that cannot be read.
function drawing(value, labels) {
  const rows = Array.isArray(value) && value.every(Array.isArray) ? value : [Array.isArray(value) ? value : [value]];
  const plain = (item) => item === null || typeof item === "number" || typeof item === "boolean";
  if (rows.length > ROWS || !rows.every((row) => row.length <= BARS && row.every(plain))) return null;
  const named = labels && (rows === value ? labels : [labels]);
  return make("div", {}, rows.map((row, index) =>
    row.length === 1 && !named ? make("p", { className: "one", textContent: short(row[0]), title: String(row[0]) }) : bars(row, named && named[index])));
}

// A bar's length is its share of the largest; a score between 0 and 1 fills that share of the line.
function bars(values, labels) {
  const numbers = values.map((value) => (typeof value === "number" ? value : 0));
  const most = Math.max(...numbers.map(Math.abs), numbers.every((value) => value >= 0 && value <= 1) ? 1 : 1e-30);
  return make("ol", { className: "bars" }, values.map((value, index) => {
    const bar = make("span", { className: numbers[index] < 0 ? "bar below" : "bar" });
    bar.style.width = `${(100 * Math.abs(numbers[index])) / most}%`;
    const said = labels ? String(labels[index]) : String(index);
    return make("li", { className: labels ? "named" : "" }, make("span", { className: "of", textContent: said, title: said }),
      make("span", { className: "track" }, bar), make("span", { className: "value", textContent: short(value), title: String(value) }));
  }));
}

function written(value) {
  const text = JSON.stringify(value, null, 1).replace(/\[[^[\]{}]*\]/g, (list) => list.replace(/\s+/g, " "));
  const cut = text.length > CHARACTERS ? `${text.slice(0, CHARACTERS)}\n… ${grouped(text.length - CHARACTERS)} more characters` : text;
  return make("pre", { textContent: cut, tabIndex: 0 });
}
