/**
 * The host's end of test/linux-long/vsock.test.ts, in the nested host. Reads `{ options, bytes, connections }` on stdin, boots
 * the guest, talks to its vsock-peer, and writes what came of it to stdout as JSON.
 */
import { Buffer } from 'node:buffer';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { performance } from 'node:perf_hooks';
import process from 'node:process';
import { text } from 'node:stream/consumers';
import { setTimeout } from 'node:timers';
import { setTimeout as sleep } from 'node:timers/promises';
import { MicroVM } from 'vmexit';

const { options, bytes, connections, timeoutMs } = JSON.parse(await text(process.stdin));
const CHUNK_BYTES = 256 * 1024;
const report = { output: '', seconds: {} };
const vm = await MicroVM.create({ accel: 'kvm', ...options });
const over = new Promise((_, reject) => {
  setTimeout(() => reject(new Error(`the guest took longer than ${timeoutMs} ms`)), timeoutMs).unref();
  vm.exited.then(() => setTimeout(() => reject(new Error('the guest ended too early')), 1000).unref(), reject);
});
over.catch(() => {});

const waiting = [];
vm.console.on('data', (chunk) => {
  report.output += Buffer.from(chunk).toString('latin1');
  for (const wait of [...waiting]) wait();
});
/** Resolves when the guest has said so. */
const said = (words) =>
  new Promise((resolve) => {
    const look = () => report.output.includes(words) && resolve();
    waiting.push(look);
    look();
  });
const timed = async (name, work) => {
  process.stderr.write(`${name}\n`);
  const startMs = performance.now();
  const stats = await vm.stats();
  const result = await work();
  report.seconds[name] = (performance.now() - startMs) / 1000;
  const after = await vm.stats();
  report[name] = {
    result,
    kicks: after.kicks - stats.kicks,
    interrupts: after.interrupts - stats.interrupts,
    exits: total(after) - total(stats),
  };
};
const total = ({ exits }) => Object.values(exits).reduce((sum, n) => sum + n, 0);
const all = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
};

/** Connects to a server that the guest may still have to start. */
async function dial(port) {
  for (;;) {
    try {
      return await vm.vsock.connect(port);
    } catch (error) {
      if (error.errno !== 'ECONNREFUSED') throw error;
      await sleep(50);
    }
  }
}

/** Sends random bytes to the guest. @returns Their checksum. */
async function send() {
  const stream = await dial(1000);
  const hash = createHash('sha256');
  const chunk = randomBytes(CHUNK_BYTES);
  for (let left = bytes; left > 0; left -= chunk.length) {
    chunk.writeUInt32LE(left, 0); // no two alike
    hash.update(chunk);
    if (!stream.write(Buffer.from(chunk))) await once(stream, 'drain');
  }
  stream.end();
  await once(stream.resume(), 'close');
  return hash.digest('hex');
}

/** Takes what the guest sends, and answers by its checksum. */
async function receive(connection) {
  const [stream] = await connection;
  const hash = createHash('sha256');
  let length = 0;
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    hash.update(chunk);
    length += chunk.length;
  }
  const sum = hash.digest('hex');
  stream.end(`the host says: ${sum}\n`);
  return { sum, length };
}

/** Connections to the guest's echo server: all open at once, each with a message of its own. */
async function echoes() {
  const streams = [];
  while (streams.length < connections) {
    // A few at a time: a connection that the guest has no time to answer is given up after seconds.
    const batch = Array.from({ length: Math.min(10, connections - streams.length) }, () => vm.vsock.connect(3000));
    streams.push(...(await Promise.all(batch)));
  }
  const answers = await Promise.all(
    streams.map(async (stream, i) => {
      stream.end(`connection ${i} `.repeat(50));
      return (await all(stream)) === `connection ${i} `.repeat(50);
    }),
  );
  return answers.filter(Boolean).length;
}

/** By the Unix socket, to the guest's echo server. */
async function byUnixSocket(path) {
  for (;;) {
    const socket = connect({ path, allowHalfOpen: true });
    socket.end('CONNECT 3001\nthrough a Unix socket\n');
    const answer = await all(socket);
    if (answer !== '') return answer;
    await sleep(50);
  }
}

async function talk() {
  const server = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)).unref();
  await new Promise((resolve) => server.listen(`${options.vsock.udsPath}_5000`, resolve));
  const refused = await vm.vsock.connect(999).catch(({ code, errno }) => ({ code, errno }));
  const connection = once(await vm.vsock.listen(2000), 'connection');
  let [echoed, open, most] = [0, 0, 0];
  await vm.vsock.listen(4000, (stream) => {
    most = Math.max(most, ++open);
    stream.pipe(stream).on('close', () => open--);
    echoed++;
  });
  await vm.start();
  await said('guest: up');
  const nobody = await vm.vsock.connect(999).catch(({ code, errno }) => ({ code, errno }));
  report.refused = [refused, nobody];
  await timed('toGuest', send);
  await said('guest: sends');
  await timed('fromGuest', () => receive(connection));
  await said('echo: up');
  await timed('echoes', echoes);
  await said('guest: unix');
  report.unix = await byUnixSocket(options.vsock.udsPath);
  await said('guest: many');
  await timed('clients', () => said('clients: '));
  report.clients.result = { echoed, most };
  report.exit = await vm.exited;
}

try {
  await Promise.race([talk(), over]);
} catch (error) {
  process.stderr.write(`${error.stack}\n${report.output.slice(-300)}\n`);
  report.error = String(error.stack);
} finally {
  await vm.close();
}
process.stdout.write(JSON.stringify(report), () => process.exit());
