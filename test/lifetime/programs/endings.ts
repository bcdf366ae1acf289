/** Ways for a thread or the process to end while VMs are open. The argument names one. */
import { EventFd, GuestRam, Kvm } from 'vmexit/kvm';
import { createGuest, runToEnd } from '../../support/guests.js';
import { runWorker } from '../../support/workers.js';
import { census, compare, report, settle, useGuest } from './census.js';

const SPIN = Uint8Array.of(0xeb, 0xfe);
const OPEN_VM = `
  const kvm = Kvm.open();
  const vm = kvm.createVm();
  const ram = vm.addMemory({ gpa: 0, size: 0x10000 });
  const { bytes } = ram;
  bytes.set([0xeb, 0xfe], 0x1000); // jmp .
  const vcpu = vm.createVcpu(0);
  const sregs = vcpu.getSregs();
  sregs.cs.base = 0n;
  sregs.cs.selector = 0;
  vcpu.setSregs(sregs);
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n });
  const eventFd = new EventFd();
  vm.addIoEventFd({ eventFd, address: 0x80, space: 'pio', length: 1 });
  eventFd.onReadable(() => {});
  vcpu.run(5);`;

/** Runs workers that end in some way, and reports what is left of them. */
async function workers(ending: string): Promise<void> {
  const end = () => runWorker(OPEN_VM + ending).done.catch((error: Error) => error.message);
  await end();
  const codes = new Set<number | string>();
  const comparison = await compare(async () => {
    for (let i = 0; i < 10; i++) codes.add(await end());
  });
  report({ ...comparison, codes: [...codes] });
}

const hasNoMappings = () => census().mappings === 0;

const ENDINGS: Record<string, () => void | Promise<void>> = {
  'worker-exit': () => workers(`process.exit(3);`),
  'worker-throws': () => workers(`throw new Error('deliberate');`),
  'worker-returns': () => workers(`eventFd.onReadable(undefined);`),
  'worker-closes-half': () => workers(`vm.close(); process.exit(4);`),

  async 'main-exits'() {
    const spinning = Array.from({ length: 4 }, () => runWorker(`${OPEN_VM} parentPort.postMessage(0); vcpu.run();`));
    await Promise.all(spinning.map((worker) => worker.next()));
    report({ exiting: true });
    process.exit(7);
  },
  async 'main-throws'() {
    const { next } = runWorker(`${OPEN_VM} parentPort.postMessage(0); vcpu.run();`);
    await next();
    createGuest(SPIN).vcpu.run(5);
    report({ exiting: true });
    setImmediate(() => {
      throw new Error('deliberate');
    });
  },
  'main-returns'() {
    const guest = createGuest('hello');
    const eventFd = new EventFd();
    guest.vm.addIoEventFd({ eventFd, address: 0x70, space: 'pio', length: 1 });
    runToEnd(guest.vcpu);
    report({ exiting: true });
  },

  'vm-before-vcpu'() {
    const guest = createGuest('hello');
    guest.vm.close();
    guest.vcpu.close();
    guest.ram.close();
    guest.kvm.close();
    report({ ok: true });
  },
  'kvm-first'() {
    const guest = createGuest('hello');
    guest.kvm.close();
    const outcome = runToEnd(guest.vcpu);
    guest.vm.close();
    report({ ok: outcome.status === 0 });
  },
  'vcpu-twice'() {
    const guest = createGuest('hello');
    for (let i = 0; i < 3; i++) for (const object of [guest.vcpu, guest.ram, guest.vm, guest.kvm]) object.close();
    report({ ok: true });
  },
  'views-outlive'() {
    const guest = createGuest('hello');
    const { bytes } = guest.ram;
    const { exit } = guest.vcpu;
    guest.vcpu.run();
    guest[Symbol.dispose]();
    report({ ok: bytes.byteLength === 0 && bytes[0] === undefined && exit.io.port === 0 });
  },
  async 'memory-outlives-vm'() {
    const views = [Kvm.open().createVm().addMemory({ gpa: 0, size: 0x10000 }).bytes];
    await settle(); // collects the VM and the GuestRam: the view alone keeps the mapping
    views[0][0xffff] = 1;
    const held = census().mappings;
    views.length = 0;
    await settle(hasNoMappings);
    report({ ok: held === 1 && hasNoMappings(), held, left: census() });
  },
  async 'attached-then-closed'() {
    const ram = GuestRam.create(0, 1 << 20);
    const worker = runWorker(
      `const { bytes } = GuestRam.attach(data, 0); parentPort.postMessage(0);
       for (let i = 0; ; i++) { if (bytes.byteLength === 0) break; bytes[i % bytes.length] = i;
         if (i % 65536 === 0) await new Promise((resolve) => setTimeout(resolve, 0)); }
       parentPort.postMessage(1);`,
      ram.token,
    );
    await worker.next();
    ram.close();
    await worker.next();
    await worker.done;
    await settle(hasNoMappings);
    report({ ok: hasNoMappings() });
  },
  async 'attached-then-collected'() {
    const ram = GuestRam.create(0, 1 << 20);
    for (let i = 0; i < 100; i++) GuestRam.attach(ram.token, 0);
    ram.close(); // asks each to let go, which some are collected before they do
    await settle(hasNoMappings);
    report({ ok: hasNoMappings() });
  },
  'attached-left-open'() {
    const ram = GuestRam.create(0, 1 << 20);
    GuestRam.attach(ram.token, 0).bytes[0] = 1;
    report({ ok: ram.bytes[0] === 1 });
  },
  async 'several-workers'() {
    const ends = await Promise.all(
      Array.from({ length: 8 }, () => runWorker(`${OPEN_VM} vm.close(); eventFd.close(); kvm.close();`).done),
    );
    useGuest()[Symbol.dispose]();
    await settle(hasNoMappings);
    report({ ok: ends.every((code) => code === 0) && hasNoMappings() });
  },
};

await ENDINGS[process.argv[2]]();
