// Listens with npm's EventSource: prints `open` for each connection, `error CODE`, and `TYPE ID DATA` for each event.
// Usage: eventsource.mjs URL TOKEN TYPE... ; an empty token sends no header.
import { createRequire } from "node:module";

const { EventSource } = createRequire(process.env.AMAN_TOOLS + "/")("eventsource");
const [url, token, ...types] = process.argv.slice(2);
const headers = token ? { authorization: `Bearer ${token}` } : {};
const source = new EventSource(url, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }),
});
// While it waits to come back, nothing else would keep the program from ending.
const alive = setInterval(() => {}, 1000);
const show = (event) => console.log(event.type, event.lastEventId, event.data);
source.onopen = () => console.log("open");
source.onerror = (event) => {
  console.log("error", event.code ?? "");
  if (source.readyState === EventSource.CLOSED) clearInterval(alive);
};
for (const type of types) source.addEventListener(type, show);
