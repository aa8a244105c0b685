import { describe, expect, test } from 'vitest';
import { parseSSEStream } from 'sandpail';
import { SseParser, serverSentEvents } from '../src/sse.js';

const TEXT = ': comment\nevent: a\ndata: 1\ndata: zwei €\n\ndata:3\r\n\r\nevent: empty\n\nid: 9\nevent: b\ndata\n\n';
const EVENTS = [
  { event: 'a', data: '1\nzwei €' },
  { event: 'message', data: '3' },
  { event: 'b', data: '' },
];

function bodyOf(...chunks: Uint8Array[]): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe('event streams', () => {
  test('are the same however the bytes are split', async () => {
    const whole = new TextEncoder().encode(TEXT);
    for (let at = 0; at <= whole.length; at++) {
      expect(await collect(serverSentEvents(bodyOf(whole.slice(0, at), whole.slice(at)))), `split at ${at}`).toEqual(
        EVENTS,
      );
    }
    expect(await collect(serverSentEvents(bodyOf(...Array.from(whole, (byte) => Uint8Array.of(byte)))))).toEqual(
      EVENTS,
    );
  });

  test('an unfinished last event is dropped', () => {
    expect(new SseParser().push('data: 1\n\ndata: 2\n')).toEqual([{ event: 'message', data: '1' }]);
  });

  test('a lone carriage return ends a line', () => {
    expect(new SseParser().push('event: x\rdata: 1\r\rdata: 2\n\n')).toEqual([
      { event: 'x', data: '1' },
      { event: 'message', data: '2' },
    ]);
  });

  test('leaving the loop cancels the body', async () => {
    let cancelled = false;
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => controller.enqueue(new TextEncoder().encode('data: 1\n\n')),
      cancel: () => void (cancelled = true),
    });
    for await (const event of serverSentEvents(body)) {
      expect(event.data).toBe('1');
      break;
    }
    expect(cancelled).toBe(true);
  });

  test('parseSSEStream takes raw bodies and iterators', async () => {
    expect(await collect(parseSSEStream(bodyOf(new TextEncoder().encode('data: {"a":1}\n\n'))))).toEqual([{ a: 1 }]);
    async function* items() {
      yield 1;
      yield 2;
    }
    expect(await collect(parseSSEStream<number>(items()))).toEqual([1, 2]);
    await expect(collect(parseSSEStream<number>(items(), AbortSignal.abort(new Error('stop'))))).rejects.toThrow(
      'stop',
    );
  });
});
