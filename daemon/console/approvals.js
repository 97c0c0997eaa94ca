// Calls of tools that wait for the person. A question may be shown in several places; all of its cards end together.

const ENDED_SHOWN = 5;
// How questions ended that this page saw end, in words, by id.
const outcomes = new Map();
let cards = 0;
const approvalsSoon = soon(showApprovals);

function outcomeOf(asked) {
  const by = asked.answered_by ?? "somebody";
  switch (asked.status) {
    case "approved": return `Allowed by ${by}.`;
    case "denied": return `Refused by ${by}.`;
    case "expired": return "Nobody answered in time, so it was not done.";
    default: return "The question was taken back, and it was not done.";
  }
}

function cardsOf(id) { return `[data-approval="${CSS.escape(id)}"]`; }

function answerButton(asked, label, approved, remember) {
  const button = make("button", label);
  button.type = "button";
  button.addEventListener("click", async () => {
    const buttons = button.parentElement.querySelectorAll("button");
    buttons.forEach((one) => { one.disabled = true; });
    try {
      const answered = await call("POST", "/tool-auth/respond", { auth_id: asked.id, approved, remember });
      outcomes.set(asked.id, outcomeOf(answered));
    } catch (error) {
      // It may wait on, as when the daemon is not there; else somebody was faster, and the card says how it ended.
      buttons.forEach((one) => { one.disabled = false; });
      if (failed(error)) return;
      if (error.status === 409) outcomes.set(asked.id, outcomes.get(asked.id) ?? await outcomeOfOld(asked.id));
    }
    await showApprovals();
  });
  return button;
}

function answerButtons(asked) {
  const may = (remember) => (asked.remember ?? []).includes(remember);
  return [
    answerButton(asked, "Yes, once", true, "once"),
    ...(may("session") ? [answerButton(asked, "Yes, in this conversation", true, "session")] : []),
    ...(may("always") ? [answerButton(asked, "Yes, always", true, "always")] : []),
    answerButton(asked, "No", false, "once"),
  ];
}

// What would turn the direction of a text, or not be seen, is shown by its number: a question reads as what would run.
function plain(text) {
  return text?.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu,
    (c) => c === "\n" || c === "\t" ? c : `\\u{${c.codePointAt(0).toString(16)}}`);
}

// Exactly what would run, why it is asked, and what each answer means.
function approvalCard(asked) {
  const who = asked.agent ? `The agent ${asked.agent}` : asked.principal ?? "The agent";
  const title = make("h3", `${who} asks: may it use ${asked.tool}?`);
  title.id = `asked-${++cards}`;
  const canRemember = (asked.remember ?? []).length > 1;
  const facts = [
    ["Offered by", asked.source],
    ["It", asked.preview && make("span", plain(asked.preview), "words")],
    ["With", pre(plain(JSON.stringify(asked.arguments, null, 2)))],
    ["Why it is asked", plain(asked.reason)],
    ["“Always” allows", canRemember ? make("code", plain(asked.pattern)) : "Nothing: such a call is asked about each time."],
    ["Led to by", asked.trust && `what is trusted as ${asked.trust}`],
    ["Conversation", asked.session && chatLink(asked.session, "Open it")],
    ["Expires", asked.expires_at && local(asked.expires_at)],
  ].filter(([, value]) => value);
  const list = make("dl", facts.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  const card = make("article", [title, list, make("p", answerButtons(asked), "actions")], "approval");
  card.dataset.approval = asked.id;
  card.tabIndex = -1;
  card.setAttribute("aria-labelledby", title.id);
  return card;
}

function endCard(card) {
  const outcome = outcomes.get(card.dataset.approval) ?? "This question is over.";
  const actions = card.querySelector(".actions");
  if (actions.textContent === outcome) return;
  card.classList.add("over");
  actions.setAttribute("role", "status");
  actions.textContent = outcome;
}

async function showApprovals() {
  try {
    // Only what was there before the daemon was asked can be over by its answer.
    const shown = [...document.querySelectorAll("[data-approval]")];
    const { items } = await call("GET", "/tool-auth/pending?limit=1000");
    const list = byId("approvals");
    const waiting = new Set(items.map((asked) => asked.id));
    list.append(...items.filter((asked) => !list.querySelector(cardsOf(asked.id))).map(approvalCard));
    for (const card of shown) {
      if (!waiting.has(card.dataset.approval)) endCard(card);
    }
    [...list.querySelectorAll(".over")].slice(0, -ENDED_SHOWN).forEach((card) => card.remove());
    byId("approvals-empty").hidden = items.length > 0;
    byId("waiting").textContent = items.length ? `(${items.length})` : "";
    document.title = items.length ? `(${items.length}) aman` : "aman";
  } catch (error) { failed(error); }
}

// What the address asks for behind #approval=: that question, or how it ended.
async function showApproval(id) {
  const told = byId("approval-told");
  told.hidden = true;
  await showApprovals();
  if (!id) return;
  const card = byId("approvals").querySelector(cardsOf(id));
  const shown = card ?? told;
  if (!card) {
    told.textContent = outcomes.get(id) ?? await outcomeOfOld(id);
    told.hidden = false;
  }
  shown.scrollIntoView();
  shown.focus();
}

async function outcomeOfOld(id) {
  try {
    const { items } = await call("GET", "/events/recent?limit=1000&types=aman.approval.*");
    const ended = items.find((event) => event.data?.id === id && event.type !== "aman.approval.requested");
    if (ended) return `${outcomeOf(ended.data)} (${local(ended.time)})`;
  } catch (error) { failed(error); }
  return "Nothing waits under this link: the question was answered, has expired, or was taken back.";
}

function approvalsHeard(event) {
  const isAbout = event.type.startsWith("aman.approval.");
  if (isAbout && event.type !== "aman.approval.requested") outcomes.set(event.data?.id, outcomeOf(event.data ?? {}));
  // No event of its own tells that a question was taken back; something always happens around it.
  if (isAbout || byId("approvals").querySelector(".approval:not(.over)")) approvalsSoon();
}
