// The page of one model, or the list of several.
const OWN = ["name", "version", "description", "inputs", "outputs", "limits", "routes", "schema", "signature", "status"];
const UNITS = { size: "bytes", max_body: "bytes", deadline: "seconds" };
let figures = null;

async function enter() {
  let answer;
  try {
    answer = await ask(location.pathname, { headers: { accept: "application/json" } });
  } catch (error) {
    return fail(`The server cannot be reached: ${error.message}`);
  }
  at("lock").hidden = answer.status !== 401;
  at("forget").hidden = !token || answer.status === 401;
  if (answer.status === 401) {
    refuse(token ? "The server does not know this token." : "");
    return at("token").focus();
  }
  if (!answer.ok) return fail(await complaint(answer));
  const content = await answer.json();
  if (!figures) {
    figures = new Figures(at("figures"));
    figures.watch();
  }
  return "models" in content ? list(content.models) : show(content);
}

function refuse(text) {
  at("locked").hidden = !text;
  at("locked").textContent = text;
}

function titled(name) {
  at("title").hidden = false;
  at("name").textContent = name;
  document.title = `${name}, served by modelpack`;
}

function fail(text) {
  at("failed").hidden = false;
  at("failed").textContent = text;
}

function list(models) {
  titled("Models");
  at("models").hidden = false;
  const rows = models.map((model) => {
    const path = `/card/${encodeURIComponent(model.name)}/${encodeURIComponent(model.version)}`;
    const state = make("span", { className: model.state === "READY" ? "tag" : "tag warn", textContent: model.state.toLowerCase() });
    return [make("a", { href: path, textContent: model.name }), model.version, state];
  });
  at("models").replaceChildren(make("h2", { textContent: "What is served" }), table(rows, "Model", "Version", "State"));
}

function show(card) {
  titled(card.name);
  const tags = [`version ${card.version}`, ...(card.precision ? [card.precision] : [])];
  at("tags").replaceChildren(...tags.map((text) => make("span", { className: "tag", textContent: text })));
  at("about").hidden = !card.description;
  at("about").textContent = card.description || "";
  const shell = make("pre", { id: "shell", className: "run", tabIndex: 0 });
  const form = new Form(card.inputs, () => command(form, card, shell));
  at("try").hidden = false;
  form.draw(at("fields"));
  at("form").onsubmit = (event) => {
    event.preventDefault();
    send(form);
  };
  at("facts").hidden = false;
  at("facts").replaceChildren(
    section("From a shell", shell),
    section("What it takes", tensors(card.inputs)),
    section("What it gives", tensors(card.outputs)),
    ...about(card),
    section("Routes", table(Object.entries(card.routes).map(([path, text]) => [route(path), text]))),
    section("Limits", table(Object.entries(card.limits).map(([name, value]) => [words(name), grouped(value)]))));
  form.changed();
}

// A link is followed without a token.
function route(path) {
  const code = make("code", { textContent: path });
  return token || path === "/predict" ? code : make("a", { href: path }, code);
}

function about(card) {
  const rows = Object.entries(card).filter(([name]) => !OWN.includes(name)).map(([name, value]) => [words(name), told(value)]);
  return rows.length ? [section("About this model", table(rows))] : [];
}

function tensors(side) {
  return table(Object.entries(side).map(([name, tensor]) => {
    const limits = tensor.range ? ` ${short(tensor.range[0])} to ${short(tensor.range[1])}` : "";
    return [make("code", { textContent: name }), make("span", {}, `${tensor.dtype} `,
      make("code", { textContent: `[${tensor.shape.join(", ")}]` }), make("span", { className: "quiet", textContent: limits }))];
  }));
}

const words = (name) => name.replaceAll("_", " ") + (name in UNITS ? `, ${UNITS[name]}` : "");

function told(value, depth = 0) {
  if (Array.isArray(value) && value.every((item) => typeof item !== "object")) return value.join(", ");
  if (value && typeof value === "object" && !Array.isArray(value) && depth < 2 && Object.keys(value).length)
    return table(Object.entries(value).map(([name, item]) => [words(name), told(item, depth + 1)]));
  if (value && typeof value === "object") return written(value);
  if (typeof value === "number") return Number.isInteger(value) ? grouped(value) : short(value);
  return /^[0-9a-f]{32,}$/.test(value) ? make("code", { textContent: value }) : String(value);
}

const predicting = () => (location.pathname === "/" ? "/predict" : location.pathname.replace(/^\/card/, "/predict"));

async function send(form) {
  const place = at("answer"), title = make("h2", { textContent: "It answers" });
  at("send").disabled = true;
  at("sent").textContent = "asking …";
  try {
    const body = await form.body();
    const began = performance.now();
    const answer = await ask(predicting(), { method: "POST", headers: { "content-type": "application/json" }, body });
    const seconds = (performance.now() - began) / 1000;
    if (!answer.ok) throw new Error(`${answer.status}: ${await complaint(answer)}`);
    place.replaceChildren(title, ...answered(await answer.json(), seconds, answer.headers.get("server-timing")));
    place.dataset.state = "answered";
  } catch (error) {
    place.replaceChildren(title, make("p", { className: "wrong", textContent: error.message }));
    place.dataset.state = "failed";
  }
  at("send").disabled = false;
  at("sent").textContent = "";
  figures.look();
}

// The same request for a shell, as long as it can be read; a large one as a file.
async function command(form, card, place) {
  const start = `curl ${location.origin}${predicting()}${token ? ' \\\n  -H "authorization: Bearer $TOKEN"' : ""}`;
  const inputs = Object.entries(card.inputs), [, first] = inputs[0];
  if (inputs.length === 1 && first.dtype === "bytes") {
    place.textContent = `${start} \\\n  -H 'content-type: image/jpeg' \\\n  --data-binary @picture.jpg`;
    return;
  }
  let body;
  try {
    body = await form.body();
  } catch (error) {
    place.textContent = error.message;
    return;
  }
  const data = body.length > 2000 ? "@request.json" : `'${body.replaceAll("'", "'\\''")}'`;
  place.textContent = `${start} \\\n  -H 'content-type: application/json' \\\n  -d ${data}`;
}

at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = at("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(typed)) return refuse("A token has letters, digits and ._~+/- alone.");
  token = typed;
  sessionStorage.setItem(KEPT, token);
  at("token").value = "";
  return enter();
});
at("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEPT);
  location.reload();
});
enter();
