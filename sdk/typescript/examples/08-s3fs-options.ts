/** Options in the words of s3fs: those with a meaning here are taken, others are refused by name. */

import { InvalidMountConfigError, env, getSandbox } from 'sandpail';
import { check, freshName, refused } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('options'));
await sandbox.mountBucket('MY_BUCKET', '/data', {
  s3fsOptions: ['nomultipart', 'stat_cache_expire=60'],
  readOnly: true,
});
check((await sandbox.exec('ls /data')).success, 'known options are taken');

const withOption = (option: string) => sandbox.mountBucket('MY_BUCKET', '/more', { s3fsOptions: [option] });
await refused(
  withOption('passwd_file=/etc/passwd'),
  InvalidMountConfigError,
  's3fs option "passwd_file" cannot be overridden',
);
await refused(withOption('url=http://elsewhere'), InvalidMountConfigError, 's3fs option "url" cannot be overridden');
await refused(withOption('no_such_option=1'), InvalidMountConfigError, 'no_such_option');
check((await sandbox.listMounts()).length === 1, 'a refused mount leaves nothing');
