// A form from the model's inputs, with an example filled in; what it gives is the text of a request in columns.
const FEW = 48, SEVERAL = 4096;
const NUMBERS = /^(u?int|float)/;

class Form {
  constructor(inputs, changed) {
    this.inputs = Object.entries(inputs);
    this.changed = changed;
    this.sizes = {};
    const first = new Set(this.inputs.map(([, tensor]) => tensor.shape[0]));
    for (const [, tensor] of this.inputs)
      for (const size of tensor.shape)
        if (typeof size === "string") this.sizes[size] = first.has(size) && first.size === 1 ? 1 : 4;
    this.pictures = {};
  }

  draw(place) {
    this.read = {};
    const fields = this.inputs.map(([name, tensor]) => this.field(name, tensor));
    const sizes = Object.keys(this.sizes).filter((size) => !this.chosen(size));
    place.replaceChildren(...fields, ...(sizes.length ? [this.sizing(sizes, place)] : []));
  }

  // Files say themselves how many they are.
  chosen(size) {
    return this.inputs.every(([, tensor]) => tensor.dtype === "bytes" || !tensor.shape.includes(size));
  }

  sizing(names, place) {
    const fields = names.map((name) => {
      const input = make("input", { type: "number", min: 1, max: 512, value: this.sizes[name], className: "size" });
      input.addEventListener("change", () => {
        this.sizes[name] = Math.max(1, Math.min(512, Math.trunc(Number(input.value)) || 1));
        this.draw(place);
        this.changed();
      });
      return make("label", {}, make("code", { textContent: name }), input);
    });
    return make("div", { className: "sizes" }, make("span", { className: "quiet", textContent: "Sizes" }), fields);
  }

  field(name, tensor) {
    const shape = tensor.shape.map((size) => (typeof size === "string" ? this.sizes[size] : size));
    const said = `${tensor.dtype} [${tensor.shape.join(", ")}]`;
    const draw = tensor.dtype === "bytes" ? this.files : product(shape) <= FEW ? this.values : this.bulk;
    const inner = draw.call(this, name, tensor, shape);
    return make("fieldset", {}, make("legend", {}, make("code", { textContent: name }),
      make("span", { className: "quiet", textContent: ` ${said}` })), inner);
  }

  values(name, tensor, shape) {
    const count = product(shape);
    const fields = example(tensor, count).map((value, index) => {
      const label = count > 1 ? `${name} ${index + 1}` : name;
      if (tensor.dtype === "string")
        return make("textarea", { rows: 2, value, ariaLabel: label, maxLength: 100000 });
      if (tensor.dtype === "bool") return make("input", { type: "checkbox", checked: value, ariaLabel: label });
      const [least, most] = tensor.range || ["", ""];
      const step = tensor.dtype.startsWith("float") ? "any" : 1;
      return make("input", { type: "number", step, min: least, max: most, value, ariaLabel: label });
    });
    const width = shape.length ? shape[shape.length - 1] : 1;
    const kind = tensor.dtype === "string" ? "texts" : width > 8 || shape.length < 2 ? "cells" : `cells of${width}`;
    const box = make("div", { className: kind }, fields);
    box.addEventListener("input", this.changed);
    this.read[name] = () => nested(fields.map((field, index) => leaf(field, tensor, `${name} ${index + 1}`)), shape);
    return box;
  }

  bulk(name, tensor, shape) {
    const count = product(shape);
    const fill = make("select", { ariaLabel: `Values of ${name}` },
      ["an example", "zeros", "ones"].map((text) => make("option", { textContent: text })));
    const made = () => nested(example(tensor, count, fill.selectedIndex).map((value) => JSON.stringify(value)), shape);
    const line = make("div", { className: "line" }, fill,
      make("span", { className: "quiet", textContent: `${grouped(count)} values, ${shape.join(" × ")}` }));
    if (count > SEVERAL) {
      fill.addEventListener("change", this.changed);
      this.read[name] = made;
      return line;
    }
    const text = make("textarea", { rows: 5, value: made(), ariaLabel: name, spellcheck: false, className: "code" });
    fill.addEventListener("change", () => { text.value = made(); this.changed(); });
    text.addEventListener("input", this.changed);
    this.read[name] = () => checked(text.value, name);
    return make("div", { className: "texts" }, line, text);
  }

  files(name, tensor) {
    const several = typeof tensor.shape[0] === "string" && this.inputs.length === 1;
    const shown = make("div", { className: "pictures" });
    const input = make("input", { type: "file", accept: "image/*", multiple: several, ariaLabel: name });
    const box = make("label", { className: "drop" }, shown, input,
      make("span", { className: "quiet", textContent: several ? "Choose images, or drop them here" : "Choose an image, or drop it here" }));
    const take = (files) => {
      this.pictures[name] = [...files];
      shown.replaceChildren(...this.pictures[name].map((file) => make("img", { src: URL.createObjectURL(file), alt: file.name })));
      this.changed();
    };
    input.addEventListener("change", () => input.files.length && take(input.files));
    for (const event of ["dragover", "drop"])
      box.addEventListener(event, (happened) => {
        happened.preventDefault();
        if (event === "drop" && happened.dataTransfer.files.length)
          take([...happened.dataTransfer.files].slice(0, several ? undefined : 1));
      });
    if (this.pictures[name]) take(this.pictures[name]);
    else painted().then(take);
    this.read[name] = async () => {
      if (!this.pictures[name]) throw new Error(`${name}: choose an image`);
      const words = await Promise.all(this.pictures[name].map(based));
      return JSON.stringify(tensor.shape.length ? words : words[0]);
    };
    return box;
  }

  async body() {
    const texts = [];
    for (const [name] of this.inputs) texts.push(`${JSON.stringify(name)}: ${await this.read[name]()}`);
    return `{"inputs": {${texts.join(", ")}}}`;
  }
}

// Values that the model takes: within the range, and not all alike. `kind` 1 and 2 are zeros and ones.
function example(tensor, count, kind = 0) {
  const [least, most] = tensor.range || (tensor.dtype.startsWith("float") ? [0, 1] : [0, 0]);
  const whole = !tensor.dtype.startsWith("float");
  return Array.from({ length: count }, (_, index) => {
    if (tensor.dtype === "string") return "A sentence to try.";
    if (tensor.dtype === "bool") return kind !== 1;
    if (kind) return kind - 1;
    const part = (((index + 1) * 0.618034) % 1).toFixed(2);
    return whole ? least + ((index + 1) % Math.min(most - least + 1, 10)) : Number((least + part * (most - least)).toPrecision(6));
  });
}

// The JSON of one field, as it was typed: whole numbers may have more digits than a script's numbers.
function leaf(field, tensor, name) {
  if (field.type === "checkbox") return String(field.checked);
  if (!NUMBERS.test(tensor.dtype)) return JSON.stringify(field.value);
  if (field.value === "") throw new Error(`${name} is no number`);
  if (tensor.dtype.startsWith("float")) return String(Number(field.value));
  if (!/^-?\d+$/.test(field.value)) throw new Error(`${name} is no whole number`);
  return BigInt(field.value).toString();
}

function nested(leaves, shape) {
  if (!leaves.length) return "[]";
  for (const size of [...shape].reverse()) {
    const rows = [];
    for (let start = 0; start < leaves.length; start += size) rows.push(`[${leaves.slice(start, start + size).join(", ")}]`);
    leaves = rows;
  }
  return leaves[0];
}

function checked(text, name) {
  try {
    JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
  return text;
}

function based(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

// An image to begin with: a sun over hills.
function painted() {
  const canvas = make("canvas", { width: 240, height: 180 }), brush = canvas.getContext("2d");
  const sky = brush.createLinearGradient(0, 0, 0, 180);
  sky.addColorStop(0, "#2b6cb0");
  sky.addColorStop(1, "#fbd38d");
  const shapes = [[sky, 0, 0, 0], ["#f6e05e", 168, 70, 30], ["#2f855a", 60, 260, 130], ["#276749", 190, 280, 130]];
  for (const [colour, x, y, radius] of shapes) {
    brush.fillStyle = colour;
    brush.beginPath();
    if (radius) brush.arc(x, y, radius, 0, 2 * Math.PI);
    else brush.rect(0, 0, 240, 180);
    brush.fill();
  }
  return new Promise((resolve) => canvas.toBlob((blob) => resolve([new File([blob], "example.png", { type: "image/png" })])));
}
