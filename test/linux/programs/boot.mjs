/**
 * Boots guests one after another, in the nested host or, under TCG, anywhere. Reads a JSON array of `GuestPlan` (test/support/linux-guests.ts)
 * on stdin, writes an array of `GuestReport` to stdout.
 */
import { once } from 'node:events';
import { readdir, readFile, readlink, writeFile } from 'node:fs/promises';
import { createHash, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { connect } from 'node:net';
import { performance } from 'node:perf_hooks';
import { text } from 'node:stream/consumers';
import process from 'node:process';
import { clearTimeout, setTimeout } from 'node:timers';
import { setTimeout as sleep } from 'node:timers/promises';
import { Buffer } from 'node:buffer';
import { MicroVM, serveDevice } from 'vmexit';

const plans = JSON.parse(await text(process.stdin));
const reports = [];
/** Ends a wait for what should come by itself. */
const PATIENCE_MS = 60_000;
// A machine that is closed leaves a spare thread to the next.
const first = plans.find(({ options }) => options.accel === 'kvm' && options.kernel)?.options;
if (first) await (await MicroVM.create({ kernel: first.kernel, accel: 'kvm' })).close();
// And what the first machine opens for the process, and no other one again.
const own = [...(await belongings()), '/dev/null', 'anon_inode:[eventpoll]', 'anon_inode:[eventfd]'];
for (const plan of plans) {
  process.stderr.write(`booting: ${plan.name}\n`);
  const startedMs = performance.now();
  let report = await runOnce(plan);
  if (plan.options.accel === 'kvm' && isFailureOfEmulation(report)) {
    const { output, exit, error } = report;
    const failure = `${error ?? exit.crash?.cause ?? exit.reason}, after:\n${output}`;
    report = { ...(await runOnce(plan)), failure };
  }
  report.seconds = (performance.now() - startedMs) / 1000;
  const left = await leftBeside(own);
  if (left.length > 0) report.error ??= `left behind: ${left.join(', ')}`;
  reports.push(report);
}
// Registers of a crash are BigInts.
const toJson = (_key, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value);
process.stdout.write(JSON.stringify(reports, toJson));

async function runOnce(plan) {
  return run(plan).catch((error) => ({ name: plan.name, output: '', error: String(error.stack) }));
}

/** The nested host's emulation spoils a guest now and then: docs/nested.md, "Traps". */
function isFailureOfEmulation({ exit, error, output }) {
  const spoilt = /traps: PANIC|BUG: |general protection fault|Oops: /.test(output);
  return exit?.crash?.cause.includes('triple fault') || /^the guest ran for/.test(error ?? '') || spoilt;
}

async function run(plan) {
  const { name, consoleSize, join, vsockEcho, backends = [], steps = [], serve, blank = {}, hash = [] } = plan;
  const { timeoutMs = 240_000 } = plan;
  const options = { ...plan.options };
  for (const [path, bytes] of Object.entries(blank)) await writeFile(path, Buffer.alloc(bytes));
  const server =
    serve &&
    createServer((request, response) =>
      response.end(request.url === '/large' ? Buffer.alloc(serve.largeBytes) : serve.body),
    );
  if (server) {
    await new Promise((resolve) => server.listen(serve.port ?? 0, serve.address ?? '127.0.0.1', resolve));
    // Linux puts what it does not know into the environment of init.
    options.cmdline += ` HTTP_PORT=${server.address().port}`;
  }
  const served = [];
  let vm;
  let timer;
  try {
    for (const backend of backends) served.push(await serveDevice(backend));
    vm = await MicroVM.create(options);
    const report = { name, output: '', stats: {}, fetched: {}, echoed: {}, deviceErrors: [], balloon: {}, hashes: {} };
    report.takenMs = {};
    const acts = {
      drive: ({ drive, method, args = [] }) => vm.drives[drive][method](...args),
      killDrive: ({ drive }) => killAndRestart(vm.drives[drive], report),
      killShare: ({ share }) => killAndRestart(vm.shares[share], report),
      stats: async ({ as }) => {
        const afterMs = performance.now();
        report.stats[as] = await vm.stats();
        report.takenMs[as] = { afterMs, beforeMs: performance.now() };
      },
      powerButton: () => vm.powerButton(),
      // What was under way still comes. A guest that goes on talking never lets a second pass in silence.
      pause: async () => {
        await vm.pause();
        await until(async () => {
          const { length } = report.output;
          await sleep(1000);
          report.saidInPause = report.output.slice(length);
          return report.saidInPause === '';
        });
        await vm.resume();
      },
      reset: () => vm.reset(),
      vsock: async ({ port, bytes }) => {
        const stream = await dial(() => vm.vsock.connect(port));
        report.echoed[`vsock ${port}`] = await echo(stream, bytes);
        stream.end();
      },
      vsockUnix: async ({ path, port, bytes }) => {
        const socket = await dial(() => connectUnix(path, port));
        report.echoed[`unix ${port}`] = await echo(socket, bytes);
        socket.end();
      },
      stop: () => vm.stop(),
      balloon: (step) => vm.balloon.setTarget(step.target),
      balloonStats: ({ as, atMost = Infinity, actual }) =>
        until(async () => {
          const stats = (report.balloon[as] = await vm.balloon.stats());
          return stats.residentBytes <= atMost && (actual === undefined || stats.actualBytes === actual);
        }),
      fetch: async (step) => (report.fetched[step.as] = await (await globalThis.fetch(step.url)).text()),
      type: (step) => vm.console.write(step.text),
      resizeConsole: ({ columns, rows }) => vm.resizeConsole({ columns, rows }),
      killPasst: async () => {
        const failed = once(vm, 'deviceError');
        for (const pid of await childrenNamed('passt')) process.kill(pid, 'SIGKILL');
        await failed;
      },
      killQemu: async ({ like }) => {
        const failed = once(vm, 'deviceError');
        for (const pid of await childrenNamed('qemu')) {
          if ((await readFile(`/proc/${pid}/cmdline`, 'utf8')).includes(like)) process.kill(pid, 'SIGKILL');
        }
        await failed;
      },
      echo: async (step) => (report.echoed[step.port] = await echo(vm.port(step.port), step.bytes)),
    };
    // One step after the other: a guest that was told to go on must not take the one before by surprise.
    const waiting = [...steps];
    let acting;
    const act = async () => {
      while (waiting.length > 0 && report.output.includes(waiting[0].when)) {
        const step = waiting.shift();
        await acts[step.act](step);
      }
    };
    const actOnce = () => {
      acting ??= act()
        .catch((error) => (report.error ??= `${error.stack}: ${error.cause}`))
        .finally(() => (acting = undefined));
    };
    vm.console.on('data', (chunk) => {
      report.output += Buffer.from(chunk).toString('latin1');
      actOnce();
    });
    timer = setTimeout(() => {
      report.error ??= `the guest ran for ${timeoutMs} ms`;
      void vm.stop();
    }, timeoutMs);
    vm.on('deviceError', ({ device, error: { code, message } }) => {
      report.deviceErrors.push({ device, code, message });
    });
    if (join) {
      const [left, right] = join.map((index) => vm.net(index));
      left.pipe(right).pipe(left);
    }
    if (vsockEcho !== undefined) await vm.vsock.listen(vsockEcho, (stream) => stream.pipe(stream));
    if (consoleSize) await vm.resizeConsole(consoleSize);
    await vm.start();
    report.exit = await vm.exited;
    await acting;
    report.stats.end = await vm.stats();
    for (const path of hash) {
      // What the guest did not write must not hide what it said.
      const bytes = await readFile(path).catch((error) => void (report.error ??= String(error)));
      if (bytes) report.hashes[path] = createHash('sha256').update(bytes).digest('hex');
    }
    return report;
  } finally {
    clearTimeout(timer);
    await vm?.close();
    for (const device of served) await device.close();
    server?.closeAllConnections();
    server?.close();
  }
}

/** Waits until something is so, or for a minute. */
async function until(isSo) {
  const endMs = performance.now() + PATIENCE_MS;
  while (!(await isSo()) && performance.now() < endMs) await sleep(100);
}

async function killAndRestart(daemon, report) {
  const died = once(daemon, 'died');
  process.kill(daemon.pid, 'SIGKILL');
  report.died = (await died)[0].message;
  await daemon.restart();
}

/** Sends random bytes to a guest that sends them back. @returns How many came back, up to the first that is wrong. */
async function echo(stream, length) {
  const sent = randomBytes(length);
  stream.write(sent);
  let received = 0;
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    if (!sent.subarray(received, received + chunk.length).equals(chunk)) break;
    received += chunk.length;
    if (received >= length) break;
  }
  return received;
}

/** Connects to a server that the guest may still have to start. */
async function dial(connect) {
  for (;;) {
    try {
      return await connect();
    } catch (error) {
      if (error.errno !== 'ECONNREFUSED') throw error;
      await sleep(50);
    }
  }
}

/** Connects to a port of the guest by a Unix socket. */
async function connectUnix(path, port) {
  const socket = connect({ path, allowHalfOpen: true });
  socket.write(`CONNECT ${port}\n`);
  let line = '';
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) {
    line += chunk.toString('latin1');
    if (line.endsWith('\n')) break;
  }
  if (/^OK \d+\n$/.test(line)) return socket;
  socket.destroy();
  throw Object.assign(new Error(`the Unix socket said "${line}"`), { errno: line === '' ? 'ECONNREFUSED' : undefined });
}

/** Descriptors of this process, by what they lead to, and processes that it started, by name. */
async function belongings() {
  const fds = await readdir('/proc/self/fd');
  const links = await Promise.all(fds.map((fd) => readlink(`/proc/self/fd/${fd}`).catch(() => '')));
  const processes = await Promise.all(
    (await childrenNamed('')).map((pid) => readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')),
  );
  const names = [...links.map((link) => link.replace(/^pipe:.*/, 'pipe')), ...processes.map((name) => name.trim())];
  return names.filter((what) => what && !what.startsWith('/proc/'));
}

/** What there is now beside a list of belongings, when what ends by itself, such as a connection of `fetch`, has ended. */
async function leftBeside(own) {
  let left;
  await until(async () => {
    left = await belongings();
    for (const what of own) if (left.includes(what)) left.splice(left.indexOf(what), 1);
    return left.length === 0;
  });
  return left;
}

/** Processes that this one started, from whichever thread. */
async function childrenNamed(name) {
  const threads = await readdir('/proc/self/task');
  const lists = await Promise.all(threads.map((id) => readFile(`/proc/self/task/${id}/children`, 'utf8')));
  const pids = lists.flatMap((list) => list.split(' ').filter(Boolean).map(Number));
  const names = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')));
  return pids.filter((_pid, index) => names[index].startsWith(name));
}
