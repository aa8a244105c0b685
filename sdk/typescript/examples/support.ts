/** What the examples share: a check that fails the example, names of their own, and where the S3 store is. */

import type { BucketCredentials, R2Bucket } from 'sandpail';

/** Fails the example unless `holds`. */
export function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(`does not hold: ${what}`);
  console.log(`ok: ${what}`);
}

/**
 * Fails the example unless `call` is refused with an error of this class whose message holds `text`. Returns the
 * error.
 */
export async function refused<E extends Error>(
  call: Promise<unknown>,
  Class: abstract new (...args: never) => E,
  text: string,
): Promise<E> {
  const error = await call.then(
    () => undefined,
    (caught: unknown) => caught,
  );
  if (!(error instanceof Class) || !error.message.includes(text)) {
    throw new Error(`does not hold: refused with ${Class.name} (${text})`, { cause: error });
  }
  console.log(`ok: ${error.name}: ${error.message}`);
  return error;
}

/** A name that no earlier run used. */
export function freshName(topic: string): string {
  return `${topic}-${Date.now().toString(36)}-${Math.floor(Math.random() * 1e6).toString(36)}`;
}

/** Waits until `probe` gives something; fails the example after ten seconds. */
export async function eventually<T>(what: string, probe: () => Promise<T | null | undefined | false>): Promise<T> {
  for (
    const deadline = Date.now() + 10_000;
    Date.now() < deadline;
    await new Promise((resolve) => setTimeout(resolve, 100))
  ) {
    const found = await probe();
    if (found) {
      console.log(`ok: ${what}`);
      return found;
    }
  }
  throw new Error(`does not hold: ${what}`);
}

/** Removes what an example put below `prefix`. */
export async function removeAll(bucket: R2Bucket, prefix: string): Promise<void> {
  for (;;) {
    const { objects } = await bucket.list({ prefix });
    if (objects.length === 0) return;
    await bucket.delete(objects.map((object) => object.key));
  }
}

/** The S3 store of the examples that mount by endpoint. */
export function s3Store(): { endpoint: string; bucket: string; credentials: BucketCredentials } {
  const variable = (name: string) => {
    const value = process.env[name];
    if (value) return value;
    console.error(`This example mounts a bucket of an S3 store: set ${name}.`);
    process.exit(2);
  };
  return {
    endpoint: variable('EXAMPLE_S3_ENDPOINT'),
    bucket: variable('EXAMPLE_S3_BUCKET'),
    credentials: {
      accessKeyId: variable('EXAMPLE_S3_ACCESS_KEY_ID'),
      secretAccessKey: variable('EXAMPLE_S3_SECRET_ACCESS_KEY'),
    },
  };
}
