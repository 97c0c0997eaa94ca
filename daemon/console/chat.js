// Conversations with agents. A turn is followed over the answer to what was sent, or as a viewer of one that is under way.

const SESSIONS_SHOWN = 30;
// The conversation that is open, and what ends the look at its turn.
let talk = null;
let watching = null;
const sessionsSoon = soon(showSessions);

function chatLink(id, text) {
  const link = make("a", text);
  link.href = `#chat=${encodeURIComponent(id)}`;
  return link;
}

function place(what) { return `/chat/session/${encodeURIComponent(talk)}${what}`; }

function isChatting() { return !byId("log").closest("[data-view]").hidden; }

async function showSessions() {
  try {
    const list = await call("GET", `/chat/sessions?kind=person&limit=${SESSIONS_SHOWN}`);
    byId("sessions").replaceChildren(...list.items.map((one) => {
      const link = chatLink(one.id, one.title ?? "(no title)");
      if (one.id === talk) link.setAttribute("aria-current", "page");
      return make("li", [link, make("div", `${one.agent_id}, ${local(one.updated_at)}`, "who")]);
    }));
  } catch (error) { failed(error); }
}

async function showAgents() {
  try {
    const list = await call("GET", "/agents?limit=1000");
    const select = byId("agent"), chosen = select.value || "aman";
    select.replaceChildren(...list.items.map((one) => {
      const option = make("option", one.status === "disabled" ? `${one.id} (switched off)` : one.id);
      option.value = one.id;
      option.disabled = one.status === "disabled";
      option.selected = one.id === chosen;
      return option;
    }));
  } catch (error) { failed(error); }
}

// What the address asks for behind #chat: that conversation, or a new one.
async function openChat(id) {
  watching?.abort();
  watching = null;
  talk = id || null;
  await Promise.all([showSessions(), showAgents(), showTalk()]);
}

function trouble(text, retry) {
  const box = byId("trouble");
  box.hidden = !text;
  box.textContent = text;
  if (!retry) return;
  const button = make("button", "Try again");
  button.type = "button";
  button.addEventListener("click", () => { trouble(""); follow("/retry", {}); });
  box.append("\n", button);
}

function troubleOf(error) {
  if (!error.status || error.status === 401) failed(error);
  else trouble(`${error.message} (${error.code})`);
}

// The last lines stay in view, unless the person looks at something above them.
function stayAtEnd(change) {
  const page = document.documentElement;
  const atEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 150;
  change();
  if (atEnd) page.scrollTop = page.scrollHeight;
}

function entry(who, className) { return make("li", [make("div", who, "who")], className); }

function toolBox(id, name, given) {
  const box = make("details", [make("summary", ""), pre(JSON.stringify(given ?? {}, null, 2))]);
  box.dataset.call = id;
  const state = (text) => { box.firstChild.textContent = `${name}: ${text}`; };
  state("at work …");
  return {
    box,
    result(text, isError) {
      state(isError ? "failed" : "done");
      box.append(make("div", "It answered:", "who"), pre(text));
    },
  };
}

// What an agent says and does in a turn, as one entry. Foreign words are text here, whatever they look like.
function agentEntry(agent) {
  const element = entry(agent, "agent"), tools = new Map();
  let words = null;
  const add = (...children) => { words = null; element.append(...children); };
  const box = (id, name, given) => {
    const made = toolBox(id, name, given);
    tools.set(id, made);
    add(made.box);
    return made;
  };
  return {
    element,
    say(text) {
      if (!words) {
        words = make("p", [], "words");
        element.append(words);
      }
      words.append(text);
    },
    restart() { words?.remove(); words = null; },
    call: box,
    name(known) { element.firstChild.textContent = agent = known; },
    // Who thought, which may be a script or a model in the place of another.
    by(model) { element.firstChild.textContent = `${agent}, by ${model}`; },
    result(id, name, text, isError) { (tools.get(id) ?? box(id, name)).result(text, isError); },
    ask(asked) { add(approvalCard(asked)); },
    note(text) { add(make("p", text, "empty")); },
  };
}

function userEntry(message) {
  const element = entry("You", "you");
  element.append(make("p", message.text, "words"));
  for (const one of message.attachments ?? []) {
    element.append(make("p", `Attached: ${one.name} (${one.media_type})`, "empty"));
  }
  return element;
}

// The stored messages as entries: what an agent said and did between two messages of a person is one.
function entries(state) {
  const all = [];
  let agent = null;
  for (const message of state.messages) {
    if (message.role === "user") {
      agent = null;
      all.push(userEntry(message));
      continue;
    }
    if (!agent) {
      agent = agentEntry(state.agent_id);
      all.push(agent.element);
    }
    if (message.role === "tool") {
      agent.result(message.call_id, message.tool, message.text, message.is_error);
    } else {
      if (message.model) agent.by(message.model);
      if (message.text) agent.say(message.text);
      for (const one of message.tool_calls ?? []) agent.call(one.id, one.name, one.arguments);
      if (message.stopped) agent.note("(stopped)");
    }
  }
  if (state.has_more) all.unshift(make("li", `There is more before this: aman session show ${state.id}`, "empty"));
  return all;
}

async function showTalk() {
  const shown = talk, log = byId("log");
  byId("choice").hidden = Boolean(talk);
  trouble("");
  busy(Boolean(watching));
  if (!talk) {
    byId("talk-title").textContent = "A new conversation";
    log.replaceChildren();
    return;
  }
  try {
    const state = await call("GET", place("/state"));
    if (talk !== shown || watching) return;
    const open = new Set([...log.querySelectorAll("details[open]")].map((box) => box.dataset.call));
    stayAtEnd(() => log.replaceChildren(...entries(state)));
    log.querySelectorAll("details").forEach((box) => { box.open = open.has(box.dataset.call); });
    byId("talk-title").textContent = state.title ?? "A new conversation";
    const { error } = state.turn ?? {};
    if (state.state === "closed") trouble("This conversation is closed. Begin a new one to talk on.");
    else if (error && state.turn.status === "failed") trouble(`${error.detail} (${error.code})`, true);
    if (state.state === "running" || state.state === "waiting") follow();
  } catch (error) { troubleOf(error); }
}

function busy(isBusy) {
  byId("send").disabled = isBusy;
  byId("stop").disabled = !isBusy;
  byId("log").setAttribute("aria-busy", String(isBusy));
}

// Shows one frame of a turn; true when it was its last.
function take(view, name, data) {
  switch (name) {
    case "start": view.name(data.agent_id); break;
    case "token": view.say(data.text); break;
    case "usage": view.by(data.model); break;
    case "restart": view.restart(); break;
    case "tool_call": view.call(data.id, data.name, data.arguments); break;
    case "tool_result": view.result(data.id, data.name, data.text, data.is_error); break;
    case "approval_required":
      view.ask(data);
      approvalsSoon();
      break;
    case "done": case "error": return true;
  }
  return false;
}

// Gives each frame of a body of server-sent events to `show`, as its name and data.
async function readFrames(body, show) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const name = /^event: (.*)$/m.exec(frame), data = /^data: (.*)$/m.exec(frame);
      if (name && data) show(name[1], JSON.parse(data[1]));
    }
  }
}

// Has a turn taken by that route and follows it, or without a route looks at the one that is under way. The turn goes on,
// whatever becomes of this page.
async function follow(route, body, begun) {
  const mine = watching = new AbortController();
  const options = { accept: "text/event-stream", signal: mine.signal };
  let ended = false;
  trouble("");
  busy(true);
  try {
    const answer = await (route ? request("POST", place(route), body, options) : request("GET", place("/stream"), null, options));
    if (watching !== mine) return;
    const view = agentEntry("…");
    begun?.();
    stayAtEnd(() => byId("log").append(view.element));
    await readFrames(answer.body, (name, data) => {
      stayAtEnd(() => { ended ||= take(view, name, data); });
    });
  } catch (error) {
    if (watching !== mine) return;
    watching = null;
    busy(false);
    // A turn that ended before it could be looked at is in the transcript.
    if (route || error.code !== "invalid_state") return troubleOf(error);
    ended = true;
  }
  if (watching !== mine) return;
  watching = null;
  busy(false);
  // The transcript has all of it, as every other tab shows it. A stream that broke off is looked for a little later.
  setTimeout(() => { if (!watching) showTalk(); }, ended ? 0 : RETRY_MS);
}

async function send() {
  const box = byId("text"), text = box.value;
  if (!text.trim() || watching || byId("send").disabled) return;
  if (!talk) {
    byId("send").disabled = true;
    try {
      talk = (await call("POST", "/chat/session/create", { agent_id: byId("agent").value })).id;
    } catch (error) {
      busy(false);
      return troubleOf(error);
    }
    // The address names it, and nothing is loaded anew.
    history.replaceState(null, "", `#chat=${encodeURIComponent(talk)}`);
    byId("choice").hidden = true;
    sessionsSoon();
  }
  await follow("/send", { text }, () => {
    byId("log").append(userEntry({ text }));
    box.value = "";
    box.focus();
  });
}

// Another tab, or the command line, may talk here, too.
function chatHeard(event) {
  if (!isChatting() || !["aman.agent.message", "aman.agent.turn.ended"].includes(event.type)) return;
  sessionsSoon();
  if (talk && event.data?.session === talk && !watching) showTalk();
}

byId("saying").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
byId("stop").addEventListener("click", async () => {
  byId("stop").disabled = true;
  try { await call("POST", place("/stop")); } catch (error) { troubleOf(error); }
});
