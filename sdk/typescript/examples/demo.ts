/**
 * What `make demo` shows: a bucket in a sandbox, work on it, a second sandbox that may only read, and data that outlives
 * both. Every step checks what it shows.
 *
 * Needs a daemon (`SANDPAIL_URL`, `SANDPAIL_API_KEY`) with the binding `MY_BUCKET`.
 */
import { execFileSync } from 'node:child_process'

import { connect, getSandbox, type Sandbox } from 'sandpail'

/** The daemon, and its binding as an R2-like object. */
const daemon = connect()
const env = { Sandbox: daemon.env.Sandbox, MY_BUCKET: daemon.bucket('MY_BUCKET') }

const MAKE_DATA = `
import csv, random
random.seed(7)
with open("/data/measurements.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["city", "celsius"])
    for _ in range(20000):
        writer.writerow([random.choice(["Lima", "Oslo", "Pune", "Turin"]), round(random.gauss(15, 8), 1)])
`

const SUMMARISE = `
import csv, pathlib, statistics
rows = list(csv.DictReader(open("/data/measurements.csv")))
by_city = {}
for row in rows:
    by_city.setdefault(row["city"], []).append(float(row["celsius"]))
pathlib.Path("/data/results").mkdir(exist_ok=True)
with open("/data/results/summary.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["city", "count", "mean"])
    for city, values in sorted(by_city.items()):
        writer.writerow([city, len(values), round(statistics.mean(values), 2)])
print(f"{len(rows)} rows read, results/summary.csv written for {len(by_city)} cities")
`

interface Step {
  what: string
  milliseconds: number
}
const steps: Step[] = []

function fail(message: string): never {
  throw new Error(message)
}

/** Shows a step, does it, and keeps how long it took. */
async function step<T>(code: string, work: () => Promise<T>): Promise<T> {
  console.log(`\n> ${code}`)
  const start = performance.now()
  const result = await work()
  steps.push({ what: code, milliseconds: performance.now() - start })
  return result
}

/** Runs a command in a sandbox and shows what it says. */
async function show(sandbox: Sandbox, command: string, shown = command): Promise<string> {
  const result = await step(`sandbox.exec(${JSON.stringify(shown)})`, () => sandbox.exec(command))
  for (const line of `${result.stdout}${result.stderr}`.trimEnd().split('\n')) console.log(`    ${line}`)
  if (!result.success) fail(`${shown} ended with ${result.exitCode}`)
  return result.stdout
}

/** Prints what stands in the bucket, asked past every sandbox. */
async function showBucket(): Promise<string[]> {
  const listed = await step('env.MY_BUCKET.list()', () => env.MY_BUCKET.list())
  for (const object of listed.objects) console.log(`    ${String(object.size).padStart(8)}  ${object.key}`)
  return listed.objects.map((object) => object.key)
}

async function main(): Promise<void> {
  const worker = getSandbox(env.Sandbox, 'demo-worker')
  const reader = getSandbox(env.Sandbox, 'demo-reader')
  try {
    console.log('A sandbox, and a bucket as a directory in it:')
    await step('sandbox.exec("id -un")   // the sandbox starts with its first call', () => worker.exec('id -un'))
    await step('sandbox.mountBucket("MY_BUCKET", "/data")', () => worker.mountBucket('MY_BUCKET', '/data'))
    await worker.writeFile('/workspace/make_data.py', MAKE_DATA)
    await worker.writeFile('/workspace/summarise.py', SUMMARISE)
    await show(worker, 'python3 make_data.py && ls -l /data')
    await show(worker, 'python3 summarise.py && cat /data/results/summary.csv')
    await show(
      worker,
      'mkdir -p /data/logs && echo started >> /data/logs/run.log && echo done >> /data/logs/run.log && cat /data/logs/run.log',
    )
    await show(
      worker,
      'cp -r /workspace /data/code && cd /data/code && git init -q && git add . && git -c user.name=demo -c user.email=demo@example.invalid commit -qm "from a sandbox" && git log --oneline && git fsck --strict && mv /data/code /data/project && ls -A /data/project',
    )
    const inside = await worker.exec('env; cat /proc/*/environ 2>/dev/null | tr "\\0" "\\n"')
    // S3 clients inside have a key, which is worth nothing anywhere else; the daemon's and the buckets' own are not there.
    const ids = [...inside.stdout.matchAll(/_ACCESS_KEY_ID=(.*)/g)].map((found) => found[1] ?? '')
    if (/R2_|SANDPAIL_API_KEY/.test(inside.stdout) || !ids.every((id) => id.startsWith('DUMMY')))
      fail('a key is visible in the sandbox')

    console.log('\nThe bytes are in the bucket, whoever asks:')
    const keys = await showBucket()
    if (!keys.includes('results/summary.csv')) fail('the result is not in the bucket')

    console.log('\nA second sandbox sees a part of it, and may only read:')
    await step('reader.mountBucket("MY_BUCKET", "/results", { prefix: "/results/", readOnly: true })', () =>
      reader.mountBucket('MY_BUCKET', '/results', { prefix: '/results/', readOnly: true }),
    )
    const seen = await show(reader, 'ls -l /results && cat /results/summary.csv')
    if (!seen.includes('Lima')) fail('the second sandbox does not see the data')
    const refused = await reader.exec('echo overwritten > /results/summary.csv')
    console.log('\n> reader.exec("echo overwritten > /results/summary.csv")')
    console.log(`    ${refused.stderr.trim()}   (exit code ${refused.exitCode})`)
    if (refused.success || !/read-only file system/i.test(refused.stderr)) fail('the write was not refused')

    console.log('\nThe first sandbox goes; its data stays:')
    await step('sandbox.destroy()', () => worker.destroy())
    await show(reader, 'cat /results/summary.csv')
    const object = (await env.MY_BUCKET.get('results/summary.csv')) ?? fail('the object is gone')
    if (!(await object.text()).includes('Lima')) fail('the object is not what was written')
    if (process.env.SANDPAIL_BIN) {
      console.log('\n$ sandpail sandbox list')
      const listed = execFileSync(process.env.SANDPAIL_BIN, ['sandbox', 'list'], { encoding: 'utf8' })
      for (const line of listed.trimEnd().split('\n')) console.log(`    ${line}`)
    }
  } finally {
    await Promise.allSettled([worker.destroy(), reader.destroy()])
  }

  console.log('\nHow long it took:')
  for (const { what, milliseconds } of steps) {
    const text = what.length > 92 ? `${what.slice(0, 91)}…` : what
    console.log(`  ${milliseconds.toFixed(0).padStart(6)} ms  ${text}`)
  }
  console.log(`
Try next:
  sandpail serve                                  # a daemon of your own; sandpail serve --help
  id=$(sandpail sandbox create) && sandpail sandbox mount $id MY_BUCKET /data && sandpail sandbox shell $id
  sandpail mount --help                           # any S3 bucket as a directory of this machine
  sdk/typescript/examples/                        # every way to mount, one file each`)
}

await main()
