// Short links: POST an address, get a name; GET the name, be sent there.

import * as kv from 'aman:plugin/kv@0.1.0';
import { number } from 'aman:plugin/random@0.1.0';
import { nowMs } from 'aman:plugin/clock@0.1.0';

const NAME = /^[a-z0-9-]{1,40}$/;
const URL_BYTES_MAX = 2000;
const LISTED_MAX = 100;

function respond(status, headers, value) {
  const body = value === undefined ? new Uint8Array() : new TextEncoder().encode(JSON.stringify(value));
  const kind = value === undefined ? [] : [['content-type', 'application/json']];
  return { status, headers: [...kind, ...headers], body: { tag: 'bytes', val: body }, extensions: [] };
}

const invalid = (field, reason) => ({ tag: 'invalid', val: { field, reason } });

/** The stored link, or undefined. */
function find(name) {
  const stored = kv.get(`link/${name}`);
  return stored && JSON.parse(new TextDecoder().decode(stored));
}

/** A name of six letters and digits that are told apart well. */
function fresh() {
  const letters = 'abcdefghjkmnpqrstuvwxyz23456789';
  let bits = number();
  let name = '';
  for (let n = 0; n < 6; n++) {
    name += letters[Number(bits % BigInt(letters.length))];
    bits /= BigInt(letters.length);
  }
  return name;
}

function check(input) {
  if (typeof input !== 'object' || input === null) throw invalid('body', 'must be a JSON object.');
  const { url, name } = input;
  const web = typeof url === 'string' && /^https?:\/\/[!-~]+$/.test(url) && url.length <= URL_BYTES_MAX;
  if (!web) throw invalid('url', `must be an http or https address of at most ${URL_BYTES_MAX} plain characters.`);
  if (name !== undefined && !(typeof name === 'string' && NAME.test(name))) {
    throw invalid('name', "must have 1 to 40 lower-case letters, digits and '-'.");
  }
  return { url, name };
}

function create(request) {
  let input;
  try {
    input = JSON.parse(new TextDecoder().decode(request.body));
  } catch {
    throw invalid('body', 'must be JSON such as {"url": "https://example.org"}.');
  }
  const { url, name = fresh() } = check(input);
  const link = { url, created: new Date(Number(nowMs())).toISOString(), by: request.caller.principal };
  const bytes = new TextEncoder().encode(JSON.stringify(link));
  if (!kv.compareAndSwap(`link/${name}`, undefined, bytes)) {
    throw { tag: 'conflict', val: `the name '${name}' is taken.` };
  }
  return respond(201, [], { name, ...link });
}

function list() {
  const page = kv.list('link/', undefined, LISTED_MAX);
  const items = page.keys.map((key) => ({ name: key.slice('link/'.length), ...find(key.slice('link/'.length)) }));
  return respond(200, [], { items, more: page.next !== undefined });
}

export const httpHandler = {
  handle(request) {
    const { name } = Object.fromEntries(request.params);
    const link = name === undefined ? undefined : find(name);
    if (name !== undefined && !link) throw { tag: 'not-found', val: `the link '${name}'` };
    switch (`${request.method} ${request.route}`) {
      case 'GET /links':
        return list();
      case 'POST /links':
        return create(request);
      case 'GET /links/{name}':
        return respond(302, [['location', link.url]]);
      case 'DELETE /links/{name}':
        kv.delete(`link/${name}`);
        return respond(204, []);
      default:
        throw { tag: 'not-found', val: `${request.method} ${request.route}` };
    }
  },

  BodyStream: class BodyStream {
    next() {
      return undefined;
    }
  },
};
