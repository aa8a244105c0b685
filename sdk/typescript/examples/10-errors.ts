/** Each class of error, by `instanceof` and by `code`. */

import {
  BucketMountError,
  BucketUnmountError,
  FileNotFoundError,
  FileSystemError,
  InvalidMountConfigError,
  MissingCredentialsError,
  S3FSMountError,
  SessionAlreadyExistsError,
  env,
  getSandbox,
} from 'sandpail';
import { check, freshName, refused } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('errors'));
const nowhere = 'http://127.0.0.1:9';

// The configuration is wrong: nothing was tried.
await refused(
  sandbox.mountBucket('NO_SUCH_BINDING', '/data'),
  InvalidMountConfigError,
  'R2 binding "NO_SUCH_BINDING" not found in Worker env',
);
await refused(
  sandbox.mountBucket('MY_BUCKET', 'data'),
  InvalidMountConfigError,
  'Mount path must be absolute (start with /): "data"',
);
await refused(sandbox.mountBucket('MY_BUCKET', '/proc'), InvalidMountConfigError, '/proc');
await refused(
  sandbox.mountBucket('Not_A_Bucket', '/data', { endpoint: nowhere }),
  InvalidMountConfigError,
  'Invalid bucket name: "Not_A_Bucket"',
);
await refused(
  sandbox.mountBucket('bucket', '/data', { endpoint: 'nonsense' }),
  InvalidMountConfigError,
  'Invalid endpoint URL',
);

await sandbox.mountBucket('MY_BUCKET', '/data');
const taken = await refused(
  sandbox.mountBucket('MY_BUCKET', '/data'),
  InvalidMountConfigError,
  'Mount path already in use: /data',
);
check(
  taken instanceof BucketMountError && taken.code === 'INVALID_MOUNT_CONFIG',
  'all mount errors are BucketMountErrors with a code',
);
check((await sandbox.exec('ls /data')).success, 'the mount that was there goes on');

// No keys: unless the daemon has some, and then the store that nobody serves is the next obstacle.
await sandbox.mountBucket('bucket', '/no-keys', { endpoint: nowhere }).then(
  () => check(false, 'a mount without keys is refused'),
  (error: unknown) => {
    const isMissing = error instanceof MissingCredentialsError && error.message.startsWith('No credentials found');
    check(isMissing || error instanceof S3FSMountError, `without keys: ${String(error)}`);
  },
);

// The store cannot be reached.
const credentials = { accessKeyId: 'AKIDEXAMPLE', secretAccessKey: 'example-secret' };
const failed = await refused(
  sandbox.mountBucket('bucket', '/far', { endpoint: nowhere, credentials }),
  S3FSMountError,
  'S3FS mount failed',
);
check(failed.code === 'S3FS_MOUNT_ERROR' && !failed.message.includes('example-secret'), 'no error holds a key');

// In use.
const busy = await sandbox.startProcess('cd /data && echo in && exec sleep 60');
for await (const event of busy.streamLogs()) if (event.type === 'stdout') break;
await refused(sandbox.unmountBucket('/data'), BucketUnmountError, '');
check((await sandbox.exec('ls /data')).success, 'a mount that could not be unmounted goes on');
await busy.kill('SIGKILL');
await busy.wait();
await sandbox.unmountBucket('/data');

// Files and sessions.
const missing = await refused(
  sandbox.readFile('/workspace/nothing'),
  FileNotFoundError,
  'File not found: /workspace/nothing',
);
check(missing.code === 'FILE_NOT_FOUND' && missing.httpStatus === 404, 'its code is FILE_NOT_FOUND');
const directory = await refused(sandbox.readFile('/tmp'), FileSystemError, '');
check(directory.code === 'IS_DIRECTORY', 'its code is IS_DIRECTORY');
await sandbox.createSession({ id: 'mine' });
await refused(sandbox.createSession({ id: 'mine' }), SessionAlreadyExistsError, "Session 'mine' already exists");

// A command that fails is no error.
const { success, exitCode } = await sandbox.exec('exit 3');
check(!success && exitCode === 3, 'a failing command resolves');
