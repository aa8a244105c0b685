/** A server in the test process that records calls and answers as a test says, byte by byte if need be. */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** A call as it came. */
export interface Seen {
  method: string;
  url: string;
  headers: IncomingMessage['headers'];
  body: Buffer;
  json: () => Record<string, unknown>;
}

export type Answer = (seen: Seen, response: ServerResponse) => unknown;

export interface FakeServer extends AsyncDisposable {
  url: string;
  calls: Seen[];
  /** What the next calls get: one answer each, the last one for ever. */
  answer(...answers: Answer[]): void;
}

export async function fakeServer(): Promise<FakeServer> {
  let answers: Answer[] = [];
  const calls: Seen[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk));
    request.on('end', () => {
      const body = Buffer.concat(chunks);
      const { method = '', url = '', headers } = request;
      const seen = { method, url, headers, body, json: () => JSON.parse(body.toString()) as Record<string, unknown> };
      calls.push(seen);
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      if (answer) void answer(seen, response);
      else response.writeHead(500).end('no answer was set');
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    answer: (...next) => void (answers = next),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

export const json =
  (body: unknown, status = 200, headers: Record<string, string> = {}): Answer =>
  (_seen, response) =>
    response.writeHead(status, { 'Content-Type': 'application/json', ...headers }).end(JSON.stringify(body));

export const bytes =
  (body: string | Uint8Array, headers: Record<string, string> = {}): Answer =>
  (_seen, response) =>
    response.writeHead(200, headers).end(body);

export const noContent: Answer = (_seen, response) => response.writeHead(204).end();

/** The connection breaks before any answer. */
export const broken: Answer = (_seen, response) => response.destroy();

/** An event stream in these pieces, flushed one by one; `open` leaves it open at the end. */
export const stream =
  (pieces: (string | Uint8Array)[], open = false): Answer =>
  async (_seen, response) => {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' });
    for (const piece of pieces) {
      response.write(piece);
      await new Promise(setImmediate);
    }
    if (!open) response.end();
  };

const base64 = (data: string | Uint8Array) => Buffer.from(data).toString('base64');
export const out = (data: string | Uint8Array) => `event: stdout\ndata: ${base64(data)}\n\n`;
export const err = (data: string | Uint8Array) => `event: stderr\ndata: ${base64(data)}\n\n`;
export const exit = (code: number) => `event: exit\ndata: {"exit_code":${code}}\n\n`;
