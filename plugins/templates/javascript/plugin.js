// What this plugin does, in a sentence.

import { write } from 'aman:plugin/log@0.1.0';

/** A JSON response. */
function json(value, status = 200) {
  const body = new TextEncoder().encode(JSON.stringify(value));
  const headers = [['content-type', 'application/json']];
  return { status, headers, body: { tag: 'bytes', val: body }, extensions: [] };
}

export const httpHandler = {
  handle(request) {
    const params = Object.fromEntries(request.params);
    switch (`${request.method} ${request.route}`) {
      case 'GET /my-plugin/hello/{name}':
        write('info', 'Somebody was greeted.', [['name', params.name]]);
        return json({ hello: params.name });
      default:
        // What is thrown is the error that the host makes a problem document of.
        throw { tag: 'not-found', val: `${request.method} ${request.route}` };
    }
  },

  /** For responses with `body: { tag: 'streamed', val: new BodyStream() }`; this plugin has none. */
  BodyStream: class BodyStream {
    next() {
      return undefined;
    }
  },
};
