// The page at /: the way to the daemon, the views, live events and dead letters. The last part of the script.

const EVENTS_SHOWN = 200;
const LETTERS_SHOWN = 50;
const RETRY_MS = 3000;
const BURST_MS = 500;
// The half of the login that scripts see; all tabs of this origin share it, as they share the cookie.
const SESSION = "aman-session";
const lettersSoon = soon(showLetters);
let newest = 0;
let stream;

function byId(id) { return document.getElementById(id); }

// A burst of calls is one, a little later.
function soon(act) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    setTimeout(() => { waits = false; act(); }, BURST_MS);
  };
}

function say(text) { byId("state").textContent = text; }

async function request(method, path, body, { accept, signal } = {}) {
  const headers = { "x-aman-confirm": "yes" };
  const session = localStorage.getItem(SESSION);
  if (session) headers["x-aman-session"] = session;
  if (body) headers["content-type"] = "application/json";
  if (accept) headers.accept = accept;
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store", signal });
  if (answer.ok) return answer;
  const problem = await answer.json();
  throw Object.assign(new Error(problem.detail), { status: answer.status, code: problem.code });
}

async function call(method, path, body) { return (await request(method, path, body)).json(); }

function make(name, content, className) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...[content].flat());
  return element;
}

function cell(row, content, className) { row.append(make("td", content, className)); }

function pre(value) {
  return make("pre", value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));
}

// Ids of one time begin alike, so the end of a long one is shown; the whole goes to the clipboard.
function idOf(id) {
  const button = make("button", id.length > 16 ? `…${id.slice(-12)}` : id, "id");
  button.type = "button";
  button.title = `Copy ${id}`;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(id);
      say(`Copied ${id}`);
    } catch { button.textContent = id; }
  });
  return button;
}

function whyLink(id, text) {
  const link = make("a", text);
  link.href = `#why=${encodeURIComponent(id)}`;
  link.title = "What became of it, and why";
  return link;
}

function local(time) { return new Date(time).toLocaleString(); }

function showEvent(event) {
  const sequence = Number(event.amansequence);
  if (sequence <= newest) return;
  newest = sequence;
  const row = document.createElement("tr");
  row.dataset.id = event.id;
  for (const value of [event.amansequence, local(event.time), idOf(event.id)]) cell(row, value, "fixed");
  cell(row, whyLink(event.id, event.type));
  cell(row, event.source);
  cell(row, pre(event.data ?? event.data_base64));
  const body = byId("events").tBodies[0];
  body.prepend(row);
  while (body.rows.length > EVENTS_SHOWN) body.deleteRow(-1);
  byId("events").hidden = false;
  byId("events-empty").hidden = true;
}

function action(name, path) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = name;
  button.addEventListener("click", async () => {
    button.disabled = true;
    try { await call("POST", path); } catch (error) { say(`${name} failed: ${error.message}`); }
    await showLetters();
  });
  return button;
}

function letterRow(letter) {
  const row = document.createElement("tr");
  const actions = document.createElement("span");
  const path = `/dlq/${encodeURIComponent(letter.id)}`;
  actions.append(action("Retry", `${path}/retry`), action("Discard", `${path}/discard`));
  row.dataset.id = letter.id;
  for (const value of [local(letter.last_failed_at), idOf(letter.id)]) cell(row, value, "fixed");
  cell(row, whyLink(letter.event.id, letter.event.type));
  cell(row, letter.consumer);
  cell(row, pre(letter.error_chain.join("\n")));
  cell(row, actions, "fixed");
  return row;
}

async function showLetters() {
  try {
    const list = await call("GET", `/dlq?limit=${LETTERS_SHOWN}`);
    byId("letters").tBodies[0].replaceChildren(...list.items.map(letterRow));
    byId("depth").textContent = list.items.length ? `(${list.items.length}${list.next_cursor ? "+" : ""})` : "";
    byId("letters").hidden = list.items.length === 0;
    byId("letters-empty").hidden = list.items.length > 0;
  } catch (error) { failed(error); }
}

function deliveryItem(delivery) {
  const attempts = delivery.attempt === 1 ? "1 attempt" : `${delivery.attempt} attempts`;
  const item = make("li", [`${delivery.consumer}: ${delivery.status} after ${attempts}, `, idOf(delivery.id)]);
  if (delivery.error) item.append(pre(delivery.error));
  return item;
}

// What the address asks for behind #why=: the story of one event.
async function showWhy(id) {
  const section = byId("why");
  section.hidden = true;
  if (!id) return;
  try {
    const { event, status, considered, deliveries, effects, ancestors } =
      await call("GET", `/events/${encodeURIComponent(id)}/why`);
    const facts = [["Event", idOf(event.id)], ["Type", event.type], ["Source", event.source],
      ["Sequence", event.amansequence], ["Time", local(event.time)], ["Status", status]];
    section.querySelector("dl").replaceChildren(
      ...facts.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
    const quiet = considered.filter((one) => !one.matched);
    section.querySelector("ul").replaceChildren(
      ...deliveries.map(deliveryItem),
      ...quiet.map((one) => make("li", `${one.consumer}: not for it (${one.reason})`)),
      ...(deliveries.length + quiet.length ? [] : [make("li", "Nobody listens to this type.")]),
      ...effects.map((one) => make("li", one.kind === "event"
        ? ["It led to ", whyLink(one.id, one.type)] : `It led to ${one.kind} ${one.title ?? one.id}`)),
      ...ancestors.map((one) => make("li", ["Because of ", one.type ? whyLink(one.id, one.type) : one.id])));
    section.hidden = false;
    section.scrollIntoView();
  } catch (error) { failed(error); }
}

function failed(error) {
  if (error.status === 401) {
    localStorage.removeItem(SESSION);
    if (stream) stream.close();
    for (const id of ["inside", "views", "logout"]) byId(id).hidden = true;
    byId("login").hidden = false;
    say("Not logged in.");
    return true;
  }
  say(error.status ? error.message : "The daemon does not answer.");
  return false;
}

// Shows the view that the address names: #chat, #chat=SESSION, #approvals, #approval=ID, #why=EVENT.
async function route() {
  const [, name, given] = /^#(\w+)(?:=(.*))?$/.exec(location.hash) ?? [];
  let id = given;
  try {
    id = given && decodeURIComponent(given);
  } catch { /* It is no id, and is looked for as it stands. */ }
  const view = { chat: "chat", approvals: "approvals", approval: "approvals" }[name] ?? "activity";
  document.querySelectorAll("[data-view]").forEach((one) => { one.hidden = one.dataset.view !== view; });
  for (const link of byId("views").querySelectorAll("a")) {
    if (link.dataset.to === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  await showWhy(name === "why" && id);
  if (view === "chat") await openChat(id);
  if (view === "approvals") await showApproval(id);
}

function heard(event) {
  showEvent(event);
  lettersSoon();
  approvalsHeard(event);
  chatHeard(event);
}

// A ticket opens one stream; the next try takes a new one, and goes on where the last one ended.
async function live() {
  try {
    const { ticket } = await call("POST", "/auth/ticket");
    stream?.close();
    stream = new EventSource(`/events/stream?named=false&since=${newest}&ticket=${encodeURIComponent(ticket)}`);
    stream.addEventListener("open", () => say("Live."));
    stream.addEventListener("message", (message) => heard(JSON.parse(message.data)));
    stream.addEventListener("error", () => {
      stream.close();
      say("The stream ended. Trying again …");
      setTimeout(live, RETRY_MS);
    });
  } catch (error) {
    if (!failed(error)) setTimeout(live, RETRY_MS);
  }
}

async function begin() {
  try {
    const recent = await call("GET", "/events/recent?limit=50");
    byId("login").hidden = true;
    for (const id of ["inside", "views"]) byId(id).hidden = false;
    byId("logout").hidden = !localStorage.getItem(SESSION);
    recent.items.reverse().forEach(showEvent);
    await Promise.all([showLetters(), showApprovals()]);
    await route();
    await live();
  } catch (error) {
    if (!failed(error)) setTimeout(begin, RETRY_MS);
  }
}

byId("logout").addEventListener("click", async () => {
  try {
    await call("POST", "/auth/logout");
    failed({ status: 401 });
    say("Logged out.");
  } catch (error) { failed(error); }
});

addEventListener("hashchange", route);
// Another tab logged in, or out.
addEventListener("storage", (event) => {
  if (event.key !== SESSION) return;
  if (!event.newValue) failed({ status: 401 });
  else if (byId("inside").hidden) begin();
});
begin();
