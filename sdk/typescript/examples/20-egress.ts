/** What a sandbox reaches of the network: nothing, unless its policy says so. The policy changes while it runs. */

import { SandboxError, env, getSandbox } from 'sandpail';
import { check, freshName, refused } from './support.js';

await using sandbox = getSandbox(env.Sandbox, freshName('egress'));

check((await sandbox.getEgress()).enableInternet === false, 'a sandbox has no internet by itself');
const lookup = (host: string) => sandbox.exec(`python3 -c 'import socket; print(socket.gethostbyname("${host}"))'`);
check(!(await lookup('api.example.com')).success, 'and no names');

const policy = await sandbox.setEgress({
  allowedHosts: ['api.example.com', '*.pypi.org'],
  deniedHosts: ['internal.pypi.org'],
  outboundByHost: { 'api.example.com': { headers: { Authorization: 'Bearer token-of-the-operator' } } },
});
check(policy.outboundByHost['api.example.com']?.headers['Authorization'] === '***', 'a header is set, and shown to nobody');
check(!(await lookup('internal.pypi.org')).success, 'names that are denied are not known inside');
check(!(await lookup('example.org')).success, 'nor those that nobody allowed');
const raw = await sandbox.exec('curl -sS -m 10 http://192.0.2.1/');
check(raw.stdout.includes('192.0.2.1 is not reached from this sandbox'), 'an address without a name is refused, in words');
const inside = await sandbox.exec('env; cat /proc/*/environ');
check(!inside.stdout.includes('token-of-the-operator'), 'the token is nowhere inside');

await refused(sandbox.setEgress({ allowedHosts: ['http://not-a-host'] }), SandboxError, 'is no host pattern');
await sandbox.setEgress({});
check((await sandbox.getEgress()).allowedHosts.length === 0, 'without a policy there is nothing again');
