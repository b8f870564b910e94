// Live figures from /metrics: all workers together. Requests that only look at the server are left out.
const EVERY = 2000, POINTS = 60, MINUTE = 60000;
const LOOKING = /^\/($|metrics|livez|readyz|startupz|health|ping|openapi|card|v2$|v2\/health)/;

function* samples(text) {
  for (const line of text.split("\n")) {
    const found = line.match(/^(\w+)(?:\{(.*)\})? (\S+)$/);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    yield [found[1], labels, Number(found[3].replace("+Inf", "Infinity"))];
  }
}

function snapshot(text) {
  const now = { at: Date.now(), requests: 0, errors: 0, below: new Map(), queue: 0, inflight: 0, rows: 0, runs: 0 };
  const sums = {
    modelpack_queue_depth: "queue", modelpack_inflight_requests: "inflight", modelpack_batch_size_sum: "rows", modelpack_batch_size_count: "runs",
  };
  for (const [name, labels, value] of samples(text)) {
    if (name in sums) now[sums[name]] += value;
    if (LOOKING.test(labels.route)) continue;
    if (name === "modelpack_requests_total") {
      now.requests += value;
      if (Number(labels.code) >= 400) now.errors += value;
    }
    if (name === "modelpack_request_duration_seconds_bucket") {
      const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
      now.below.set(bound, (now.below.get(bound) || 0) + value);
    }
  }
  return now;
}

// As Prometheus' histogram_quantile: straight between the bounds of a bucket.
function quantile(part, now, before) {
  const counts = [...now.below].sort(([a], [b]) => a - b).map(([bound, count]) => [bound, count - (before ? before.below.get(bound) || 0 : 0)]);
  const wanted = part * (counts.length ? counts[counts.length - 1][1] : 0);
  let low = 0, under = 0;
  for (const [bound, count] of counts) {
    if (wanted > 0 && count >= wanted) return bound === Infinity ? low : low + ((bound - low) * (wanted - under)) / (count - under);
    [low, under] = [bound, count];
  }
  return NaN;
}

class Figures {
  constructor(place) {
    this.place = place;
    this.seen = [];
    this.tiles = {};
    for (const [name, title] of [["requests", "Requests"], ["errors", "Errors"], ["half", "Half within"], ["most", "95 % within"], ["queue", "Waiting"], ["rows", "Rows in a run"]]) {
      this.tiles[name] = [make("strong", { textContent: "–" }), make("span", { className: "quiet" })];
      place.append(make("div", {}, make("span", { className: "title", textContent: title }), this.tiles[name]));
    }
    this.line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.line.setAttribute("viewBox", "0 0 120 28");
    this.line.setAttribute("preserveAspectRatio", "none");
    this.line.setAttribute("aria-hidden", "true");
    this.path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    this.line.append(this.path);
    place.firstChild.append(this.line);
    place.hidden = false;
  }

  async look() {
    try {
      const answer = await ask("/metrics");
      if (!answer.ok) throw new Error(String(answer.status));
      this.seen = [...this.seen, snapshot(await answer.text())].slice(-POINTS);
      this.show();
      this.place.classList.remove("stale");
    } catch {
      this.place.classList.add("stale");
    }
  }

  show() {
    const now = this.seen[this.seen.length - 1], last = this.seen[this.seen.length - 2];
    const recent = this.seen.find((each) => now.at - each.at <= MINUTE && each.requests < now.requests);
    const when = recent ? "in the last minute" : "since the start";
    const rate = last ? (1000 * (now.requests - last.requests)) / (now.at - last.at) : 0;
    this.tell("requests", grouped(now.requests), `${short(Number(rate.toFixed(1)))} a second`);
    this.tell("errors", grouped(now.errors), `${now.requests ? short(Number(((100 * now.errors) / now.requests).toPrecision(2))) : 0} % of all`);
    this.tell("half", duration(quantile(0.5, now, recent)), when);
    this.tell("most", duration(quantile(0.95, now, recent)), when);
    this.tell("queue", grouped(now.queue), `${grouped(Math.max(0, now.inflight - 1))} in work`);
    this.tell("rows", now.runs ? short(Number((now.rows / now.runs).toPrecision(3))) : "–", `in ${grouped(now.runs)} ${now.runs === 1 ? "run" : "runs"}`);
    this.tiles.errors[0].classList.toggle("bad", now.errors > 0);
    this.draw();
  }

  tell(name, value, more) {
    this.tiles[name][0].textContent = value;
    this.tiles[name][1].textContent = more;
  }

  draw() {
    const rates = this.seen.slice(1).map((each, index) => (each.requests - this.seen[index].requests) / (each.at - this.seen[index].at));
    const most = Math.max(...rates, 1e-9), step = 120 / (POINTS - 2), start = 120 - step * (rates.length - 1);
    this.path.setAttribute("d", rates.map((rate, index) => `${index ? "L" : "M"}${(start + index * step).toFixed(1)} ${(26 - (24 * rate) / most).toFixed(1)}`).join(""));
  }

  watch() {
    this.look();
    setInterval(() => document.hidden || this.look(), EVERY);
  }
}
