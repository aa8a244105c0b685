/** The bucket of a binding, for trusted code, with the shapes of R2's binding API. */

import { errorFromResponse, invalidArgument, type Operation } from './error-mapping.js';
import { segment } from './paths.js';
import type { Call, Transport } from './transport.js';

/** What `put` takes. */
export type R2PutValue = string | ArrayBuffer | ArrayBufferView | Blob | ReadableStream<Uint8Array> | null;

/** Headers that an object is stored with. Of R2's, the daemon keeps the media type. */
export interface R2HTTPMetadata {
  contentType?: string;
}

/** Options of `put`. */
export interface R2PutOptions {
  httpMetadata?: R2HTTPMetadata | Headers | undefined;
  /** Any strings by name. */
  customMetadata?: Record<string, string> | undefined;
}

/** A part of an object: from `offset`, `length` bytes; or the last `suffix` bytes. */
export type R2Range = { offset: number; length?: number } | { offset?: number; length: number } | { suffix: number };

/** Options of `get`. */
export interface R2GetOptions {
  range?: R2Range | undefined;
}

/** Options of `list`. */
export interface R2ListOptions {
  /** Only keys that begin so. */
  prefix?: string | undefined;
  /** Fold keys at this; the folded ones are in `delimitedPrefixes`. */
  delimiter?: string | undefined;
  /** `cursor` of the page before. */
  cursor?: string | undefined;
  /** At most so many; 1000 is the most, and the default. */
  limit?: number | undefined;
}

/** A page of a listing. */
export type R2Objects = { objects: R2Object[]; delimitedPrefixes: string[] } & (
  { truncated: true; cursor: string } | { truncated: false }
);

/** An object without its bytes. Listed ones have no metadata. */
export class R2Object {
  readonly key: string;
  /** Changes with the contents. */
  readonly version: string;
  /** Bytes. */
  readonly size: number;
  /** Without quotes. */
  readonly etag: string;
  /** With quotes, as headers carry it. */
  readonly httpEtag: string;
  readonly uploaded: Date;
  readonly httpMetadata: R2HTTPMetadata;
  readonly customMetadata: Record<string, string>;

  /** @internal */
  constructor(wire: WireObject) {
    this.key = wire.key;
    this.version = wire.etag;
    this.size = wire.size;
    this.etag = wire.etag;
    this.httpEtag = wire.httpEtag;
    this.uploaded = new Date(wire.uploaded);
    this.httpMetadata = wire.httpMetadata;
    this.customMetadata = wire.customMetadata;
  }

  /** Copies `httpMetadata` into headers of an answer. */
  writeHttpMetadata(headers: Headers): void {
    if (this.httpMetadata.contentType !== undefined) headers.set('Content-Type', this.httpMetadata.contentType);
  }
}

/** An object with its bytes, which can be read once. */
export class R2ObjectBody extends R2Object {
  readonly #response: Response;

  /** @internal */
  constructor(wire: WireObject, response: Response) {
    super(wire);
    this.#response = response;
  }

  /** The bytes as they come. */
  get body(): ReadableStream<Uint8Array> {
    return this.#response.body ?? new ReadableStream({ start: (controller) => controller.close() });
  }

  /** Whether they have been read. */
  get bodyUsed(): boolean {
    return this.#response.bodyUsed;
  }

  /** All bytes. */
  arrayBuffer(): Promise<ArrayBuffer> {
    return this.#response.arrayBuffer();
  }

  /** All bytes. */
  async bytes(): Promise<Uint8Array> {
    return new Uint8Array(await this.arrayBuffer());
  }

  /** As UTF-8 text. */
  text(): Promise<string> {
    return this.#response.text();
  }

  /** As JSON. */
  async json<T = unknown>(): Promise<T> {
    return JSON.parse(await this.text()) as T;
  }

  /** As a Blob. */
  blob(): Promise<Blob> {
    return this.#response.blob();
  }
}

interface WireObject {
  key: string;
  size: number;
  etag: string;
  httpEtag: string;
  uploaded: string;
  httpMetadata: R2HTTPMetadata;
  customMetadata: Record<string, string>;
}

/** `Headers` takes no other characters, and JSON may be written with escapes. */
const NOT_ASCII = /[^\x20-\x7e]/g;

/** The bucket of a binding: `env.MY_BUCKET`. */
export class R2Bucket {
  /** The binding's name. */
  readonly binding: string;
  readonly #transport: Transport;

  /** @internal */
  constructor(transport: Transport, binding: string) {
    this.#transport = transport;
    this.binding = binding;
  }

  /** Stores an object. */
  async put(key: string, value: R2PutValue, options: R2PutOptions = {}): Promise<R2Object> {
    const headers: Record<string, string | undefined> = { 'Content-Type': contentTypeOf(options.httpMetadata, value) };
    if (options.customMetadata) {
      headers['X-Object-Metadata'] = JSON.stringify(options.customMetadata).replace(
        NOT_ASCII,
        (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
      );
    }
    // Bytes, not text: `fetch` would name a media type for a string.
    const body = typeof value === 'string' ? new TextEncoder().encode(value) : (value ?? new Uint8Array());
    return new R2Object(
      await this.#transport.json({ ...this.#object('PUT', key, 'put'), headers, body: body as BodyInit }),
    );
  }

  /** An object with its bytes, or `null`. */
  async get(key: string, options: R2GetOptions = {}): Promise<R2ObjectBody | null> {
    const headers = { Range: rangeHeader(options.range) };
    const call = { ...this.#object('GET', key, 'get'), headers, accept: [404] };
    const response = await this.#transport.send(call);
    if (response.status === 404) return noObject(response, call.operation);
    return new R2ObjectBody(objectOf(key, response), response);
  }

  /** An object without its bytes, or `null`. */
  async head(key: string): Promise<R2Object | null> {
    const response = await this.#transport.send({ ...this.#object('HEAD', key, 'head'), accept: [404] });
    if (response.ok) return new R2Object(objectOf(key, response));
    // HEAD answers have no body that would tell a missing object from a binding that does not exist.
    const object = await this.get(key);
    await object?.body.cancel();
    return object;
  }

  /** Removes objects; those that are not there are no error. */
  async delete(keys: string | string[]): Promise<void> {
    const list = Array.isArray(keys) ? keys : [keys];
    if (list.length === 0) return;
    const operation = this.#operation('delete', { keys: list.slice(0, 10) });
    await this.#transport.done({
      method: 'POST',
      path: `${this.#path}/delete`,
      json: { keys: list },
      operation,
      repeatable: true,
    });
  }

  /** Lists a page of the bucket, in order of the keys. */
  async list(options: R2ListOptions = {}): Promise<R2Objects> {
    const { prefix, delimiter, cursor, limit } = options;
    const page = await this.#transport.json<{
      objects: WireObject[];
      truncated: boolean;
      cursor?: string;
      delimitedPrefixes: string[];
    }>({
      method: 'GET',
      path: `${this.#path}/objects`,
      query: { prefix, delimiter, cursor, limit: limit === undefined ? undefined : Math.min(limit, 1000) },
      operation: this.#operation('list', { prefix }),
    });
    const objects = page.objects.map((object) => new R2Object(object));
    const { delimitedPrefixes } = page;
    return page.truncated && page.cursor !== undefined
      ? { objects, delimitedPrefixes, truncated: true, cursor: page.cursor }
      : { objects, delimitedPrefixes, truncated: false };
  }

  get #path(): string {
    return `/v1/bindings/${segment(this.binding, 'bucket')}`;
  }

  #operation(name: string, context: Record<string, unknown>): Operation {
    return { name: `${this.binding}.${name}`, context };
  }

  #object(method: Call['method'], key: string, name: string): Call {
    const operation = this.#operation(name, { key });
    return { method, path: `${this.#path}/objects/${segment(key, operation.name)}`, operation };
  }
}

async function noObject(response: Response, operation: Operation): Promise<null> {
  const error = await errorFromResponse(response, operation);
  if ('code' in error && error.code === 'OBJECT_NOT_FOUND') return null;
  throw error;
}

function objectOf(key: string, response: Response): WireObject {
  const header = (name: string) => response.headers.get(name);
  const httpEtag = header('ETag') ?? '""';
  const contentType = header('Content-Type');
  return {
    key,
    size: Number(header('X-Object-Size')),
    etag: httpEtag.replace(/^(W\/)?"|"$/g, ''),
    httpEtag,
    uploaded: header('X-Object-Uploaded') ?? header('Last-Modified') ?? '',
    httpMetadata: contentType === null ? {} : { contentType },
    customMetadata: JSON.parse(header('X-Object-Metadata') ?? '{}') as Record<string, string>,
  };
}

function contentTypeOf(metadata: R2HTTPMetadata | Headers | undefined, value: R2PutValue): string | undefined {
  if (metadata instanceof Headers) return metadata.get('Content-Type') ?? undefined;
  for (const [name, member] of Object.entries(metadata ?? {})) {
    if (name !== 'contentType' && member !== undefined) {
      throw invalidArgument(`httpMetadata.${name} is not kept by sandpail; contentType is`, 'put');
    }
  }
  return metadata?.contentType ?? (value instanceof Blob ? value.type || undefined : undefined);
}

function rangeHeader(range: R2Range | undefined): string | undefined {
  if (!range) return undefined;
  if ('suffix' in range) return `bytes=-${range.suffix}`;
  const offset = range.offset ?? 0;
  return `bytes=${offset}-${range.length === undefined ? '' : offset + range.length - 1}`;
}
