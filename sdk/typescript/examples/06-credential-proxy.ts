/**
 * `credentialProxy`: besides the directory, S3 clients inside reach the bucket through the daemon, which holds the keys.
 * What they find in their environment is an endpoint and a key that is worth nothing anywhere else.
 */

import { env, getSandbox } from 'sandpail';
import { check, freshName, s3Store } from './support.js';

const { endpoint, bucket, credentials } = s3Store();
const name = freshName('proxy');

await using sandbox = getSandbox(env.Sandbox, name);
await sandbox.mountBucket(bucket, '/data', { endpoint, credentials, credentialProxy: true, prefix: `/${name}/` });

const [mount] = await sandbox.listMounts();
check(mount?.mode === 'endpoint-proxy', 'the mount is listed as one with a proxy');
check(!JSON.stringify(mount).includes(credentials.secretAccessKey), 'and never with its keys');
await sandbox.writeFile('/data/a.txt', 'through the mount');
check((await sandbox.readFile('/data/a.txt')).content === 'through the mount', 'the directory works as any other');

// Any S3 client does; curl signs as well as others.
const s3 = (url: string, ...options: string[]) =>
  sandbox.exec(
    `curl -sS -w '%{http_code}' --aws-sigv4 aws:amz:$AWS_REGION:s3 --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" ` +
      `-H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' "${url}" ${options.join(' ')}`,
  );
const object = await s3(`$AWS_ENDPOINT_URL_S3/${bucket}/${name}/a.txt`);
check(object.stdout === 'through the mount200', 'an S3 client inside reads the same object');
const byMount = await s3(`http://s3-credential-proxy.internal/${mount!.mountId}/${bucket}/${name}/b.txt`, '-T /data/a.txt');
check(byMount.stdout === '200', 'and writes one, by the id of the mount');
check((await sandbox.readFile('/data/b.txt')).content === 'through the mount', 'which is in the directory at once');
const outside = await s3(`$AWS_ENDPOINT_URL_S3/${bucket}/somewhere/else`);
check(outside.stdout.endsWith('403'), 'what is outside the prefix is refused');
const secrets = await sandbox.exec('env; cat /proc/*/environ 2>/dev/null | tr "\\0" "\\n"');
check(!secrets.stdout.includes(credentials.secretAccessKey), 'the key of the bucket is nowhere inside');
await sandbox.deleteFile('/data/a.txt');
await sandbox.deleteFile('/data/b.txt');
