/** Trusted code fills a bucket, a sandbox works on it, trusted code reads the result. */

import { env, getSandbox } from 'sandpail';
import { check, freshName, removeAll } from './support.js';

const name = freshName('seed');
const bucket = env.MY_BUCKET;

const put = await bucket.put(`${name}/in/sales.csv`, 'north,3\nsouth,4\nnorth,5\n', {
  httpMetadata: { contentType: 'text/csv' },
  customMetadata: { source: 'example – ü' },
});
check(put.size === 24, 'put tells what it stored');
await bucket.put(`${name}/in/logo.png`, Uint8Array.of(0x89, 0x50, 0x4e, 0x47));

const head = await bucket.head(`${name}/in/sales.csv`);
check(
  head?.httpMetadata.contentType === 'text/csv' && head.customMetadata['source'] === 'example – ü',
  'head has the metadata',
);
check((await bucket.get(`${name}/nothing`)) === null, 'a missing object is null');

{
  await using sandbox = getSandbox(env.Sandbox, name);
  await sandbox.mountBucket('MY_BUCKET', '/data', { prefix: `/${name}/` });
  const worked = await sandbox.exec(`mkdir -p /data/out &&
    awk -F, '{ sum[$1] += $2 } END { for (k in sum) print k "," sum[k] }' /data/in/sales.csv |
    sort > /data/out/totals.csv`);
  check(worked.success, 'the sandbox works on the files');
}
const totals = await bucket.get(`${name}/out/totals.csv`);
check((await totals?.text()) === 'north,8\nsouth,4\n', 'the result is in the bucket');
const part = await bucket.get(`${name}/in/sales.csv`, { range: { offset: 6, length: 1 } });
check((await part?.text()) === '3', 'a part of an object can be read');

const page = await bucket.list({ prefix: `${name}/`, delimiter: '/' });
check(page.delimitedPrefixes.join() === `${name}/in/,${name}/out/`, 'a delimiter folds keys');
const first = await bucket.list({ prefix: `${name}/in/`, limit: 1 });
check(first.truncated && first.objects.length === 1, 'a listing has pages');
if (first.truncated) {
  const second = await bucket.list({ prefix: `${name}/in/`, cursor: first.cursor });
  check(second.objects[0]?.key === `${name}/in/sales.csv`, 'and a cursor for the next one');
}
await removeAll(bucket, `${name}/`);
