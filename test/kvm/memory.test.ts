import { closeSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { expect, it } from 'vitest';
import { GuestRam, Kvm, type Regs, type Vcpu, type Vm } from 'vmexit/kvm';
import { createGuest, HANG_MS, LOAD_ADDRESS, MMIO_HOLE, RAM_BYTES, runToEnd } from '../support/guests.js';
import { describeKvm } from '../support/kvm.js';
import { runWorker } from '../support/workers.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

function withVm(body: (vm: Vm) => void): void {
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  body(vm);
}
/** @returns The registers at the entry. */
function pointEsAtMmio(vcpu: Vcpu): Regs {
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, es: { ...sregs.es, base: BigInt(MMIO_HOLE), selector: MMIO_HOLE >> 4 } });
  return vcpu.getRegs();
}
/** Runs mmio-read to its end. @returns The MMIO exits, and what it has read. */
function readThrice(vcpu: Vcpu): { exits: number; values: number[] } {
  let exits = 0;
  const values: number[] = [];
  for (const exit of vcpu.exits()) {
    if (exit.reason === 'mmio') exits++;
    else if (exit.reason === 'io' && exit.port === 0x80) values.push(exit.getValue());
    else break;
  }
  return { exits, values };
}
const refusal = (code: string) => expect.objectContaining({ name: 'VmmError', code }) as Error;

describeKvm('memory slots', () => {
  it('gives the guest RAM that both sides see', () => {
    using guest = createGuest('dirty-pages', { regs: { rdi: 0x20000n, rcx: 2n, rdx: 0x1000n } });
    expect(guest.vm.memory.read(0x20000, 1)[0]).toBe(0);
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
    expect(guest.ram.bytes[0x20000]).toBe(0x55);
    expect(guest.vm.memory.read(0x21000, 1)[0]).toBe(0x55);
    expect(guest.ram.bytes[0x22000]).toBe(0);
  });

  it('shows the guest as much memory as it was given', () => {
    using guest = createGuest('memory-size', { ramBytes: 6 * MIB });
    let mib: number | undefined;
    while (mib === undefined) {
      const exit = guest.vcpu.run(HANG_MS);
      if (exit.reason === 'mmio' && !exit.isWrite) exit.data.fill(0xff);
      else if (exit.reason === 'io') mib = exit.getValue();
      else expect(exit.reason).toBe('mmio');
    }
    expect(mib).toBe(6);
  });

  it('gives the memory behind discarded pages back, which then read as zeroes', () => {
    withVm((vm) => {
      const ram = vm.addMemory({ gpa: MIB, size: 4 * MIB });
      ram.bytes.fill(7);
      const used = () => statSync(`/proc/self/fd/${ram.fd}`).blocks * 512;
      const before = used();
      ram.discard(MIB, 2 * MIB);
      expect(before - used()).toBe(2 * MIB);
      expect([ram.bytes[MIB - 1], ram.bytes[MIB], ram.bytes[3 * MIB - 1], ram.bytes[3 * MIB]]).toEqual([7, 0, 0, 7]);
      expect(() => ram.discard(0, 100)).toThrow(refusal('INVALID_ARGUMENT'));
      expect(() => ram.discard(3 * MIB, 2 * MIB)).toThrow(refusal('INVALID_ARGUMENT'));
      expect(() => ram.unmap(-4096, 4096)).toThrow(refusal('INVALID_ARGUMENT'));
    });
  });

  it('keeps what is in pages that are unmapped, and maps them again when they are used', () => {
    withVm((vm) => {
      const ram = vm.addMemory({ gpa: 0, size: 4 * MIB });
      ram.bytes.fill(7);
      const mapped = () => areasOf(ram)[0].residentBytes;
      expect(mapped()).toBe(4 * MIB);
      ram.unmap(MIB, MIB);
      expect(mapped()).toBe(3 * MIB);
      expect(ram.bytes.subarray(MIB, 2 * MIB).every((byte) => byte === 7)).toBe(true);
      expect(mapped()).toBe(4 * MIB);
    });
  });

  it('refuses slots that overlap, and keeps nothing of the refused one', () => {
    withVm((vm) => {
      vm.addMemory({ gpa: 0, size: MIB });
      expect(() => vm.addMemory({ gpa: MIB / 2, size: MIB })).toThrow(refusal('MEMORY_OVERLAP'));
      expect(vm.memory.sizeBytes).toBe(MIB);
      vm.addMemory({ gpa: MIB, size: MIB });
      expect(vm.memory.sizeBytes).toBe(2 * MIB);
    });
  });

  it('refuses addresses and sizes that are no pages', () => {
    withVm((vm) => {
      for (const [gpa, size] of [
        [1, 4096],
        [0, 0],
        [0, 4095],
        [-4096, 4096],
        [2 ** 52 - 4096, 8192],
        [NaN, 4096],
        [0, NaN],
        [0, Infinity],
      ]) {
        expect(() => vm.addMemory({ gpa, size })).toThrow(refusal('INVALID_ARGUMENT'));
      }
      expect(vm.memory.regions).toHaveLength(0);
    });
  });

  it('takes memory away from the guest, which then exits there', () => {
    using guest = createGuest('dirty-pages', { regs: { rdi: 0x10_0000n, rcx: 1n, rdx: 4096n } });
    const more = guest.vm.addMemory({ gpa: MIB, size: MIB });
    guest.vm.removeMemory(more);
    expect(guest.vm.memory.regions).toHaveLength(1);
    const exit = guest.vcpu.run(HANG_MS);
    expect(exit).toMatchObject({ reason: 'mmio', isWrite: true, gpa: MIB, size: 1 });
    expect(() => more.bytes).toThrow(refusal('CLOSED'));
    expect(() => guest.vm.removeMemory(more)).toThrow(refusal('INVALID_ARGUMENT'));
  });

  it('uses a slot number again after its memory was removed', () => {
    withVm((vm) => {
      for (let i = 0; i < 20; i++) vm.removeMemory(vm.addMemory({ gpa: 0, size: 4096 }));
      vm.addMemory({ gpa: 0, size: 4096 });
      expect(vm.memory.regions).toHaveLength(1);
    });
  });

  it('turns writes to read-only memory into MMIO exits and leaves the bytes', () => {
    using guest = createGuest('dirty-pages', { regs: { rdi: 0x10_0000n, rcx: 1n, rdx: 4096n } });
    const rom = guest.vm.addMemory({ gpa: MIB, size: 4096, readOnly: true });
    rom.bytes[0] = 0x11;
    const exit = guest.vcpu.run(HANG_MS);
    expect(exit).toMatchObject({ reason: 'mmio', isWrite: true, gpa: MIB, size: 1 });
    expect(exit.reason === 'mmio' && exit.getValue(1)).toBe(0x55);
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
    expect(rom.bytes[0]).toBe(0x11);
  });

  it('shows vCPUs memory that no device reaches, and takes it away for as long as it changes', () => {
    using guest = createGuest('mmio-read');
    const registers = guest.vm.addMemory({ gpa: MMIO_HOLE, size: 4096, readOnly: true, cpuOnly: true });
    registers.bytes.set([0x91, 0x92, 0x93, 0x94]);
    expect(guest.vm.memory.tryView(MMIO_HOLE, 4)).toBeUndefined();
    const regs = pointEsAtMmio(guest.vcpu);
    const { exits, values } = readThrice(guest.vcpu);
    expect({ exits, values }).toEqual({ exits: 0, values: [0x91, 0x9291, 0x94939291] });

    guest.vcpu.setRegs(regs);
    guest.vm.withoutMemory(registers, () => {
      expect(guest.vcpu.run(HANG_MS)).toMatchObject({ reason: 'mmio', isWrite: false, gpa: MMIO_HOLE });
      registers.bytes.fill(0x11);
    });
    // The first read is answered already, with what its exit was left with.
    expect(readThrice(guest.vcpu)).toMatchObject({ exits: 0, values: [expect.any(Number), 0x1111, 0x11111111] });
  });

  it('harvests exactly the pages the guest wrote, once', () => {
    using guest = createGuest('dirty-pages', {
      logDirtyPages: true,
      regs: { rdi: 0x2_0000n, rcx: 3n, rdx: 0x3000n },
    });
    guest.vm.harvestDirtyLog(guest.ram);
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
    const pages = dirtyPages(guest.vm.harvestDirtyLog(guest.ram));
    expect(pages).toEqual(expect.arrayContaining([0x20, 0x23, 0x26]));
    // The processor itself may set accessed bits in the page tables at 0x80000.
    expect(pages.filter((page) => page < 0x80)).toEqual([0x20, 0x23, 0x26]);
    expect(dirtyPages(guest.vm.harvestDirtyLog(guest.ram))).toEqual([]);
  });

  it('starts and stops logging dirty pages while the VM lives', () => {
    using guest = createGuest('hello');
    expect(() => guest.vm.harvestDirtyLog(guest.ram)).toThrow(refusal('IOCTL'));
    guest.vm.setDirtyLogging(guest.ram, true);
    expect(guest.vm.harvestDirtyLog(guest.ram)).toHaveLength(Math.ceil(RAM_BYTES / 4096 / 64));
    guest.vm.setDirtyLogging(guest.ram, false);
    expect(() => guest.vm.harvestDirtyLog(guest.ram)).toThrow(refusal('IOCTL'));
  });

  it('serves two VMs from one memory', () => {
    using kvm = Kvm.open();
    using first = kvm.createVm();
    using second = kvm.createVm();
    const ram = first.addMemory({ gpa: 0, size: MIB });
    second.addMemory({ gpa: 0, size: MIB, ram });
    first.memory.write(0x500, Uint8Array.of(1, 2, 3));
    expect([...second.memory.read(0x500, 3)]).toEqual([1, 2, 3]);
    expect(() => second.addMemory({ gpa: MIB, size: MIB, ram })).toThrow(refusal('INVALID_ARGUMENT'));
  });
});

describeKvm('guest memory', () => {
  it('reaches every byte of 6 GiB through windows, without taking host memory for them', () => {
    withVm((vm) => {
      const ram = vm.addMemory({ gpa: 0, size: 6 * GIB });
      expect(ram.windows.length).toBeGreaterThan(1);
      for (const gpa of [0, GIB, 2 * GIB - 4, 2 * GIB - 2, 3 * GIB, 4 * GIB - 3, 5 * GIB - 1, 6 * GIB - 8]) {
        const bytes = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
        vm.memory.write(gpa, bytes);
        expect([...vm.memory.read(gpa, 8)]).toEqual([...bytes]);
      }
      expect(() => vm.memory.read(6 * GIB - 7, 8)).toThrow(refusal('GPA_OUT_OF_RANGE'));
      const { size, blocks } = statSync(`/proc/self/fd/${ram.fd}`);
      expect(size).toBe(6 * GIB);
      expect(blocks * 512).toBeLessThan(MIB);
    });
  });

  it('agrees with itself where windows overlap', () => {
    using ram = GuestRam.create(0, 4 * GIB);
    ram.windows[0][GIB + 5] = 77;
    expect(ram.windows[1][5]).toBe(77);
  });

  it('cannot be resized or closed from under the views by its file descriptor', async () => {
    using ram = GuestRam.create(0, MIB);
    const { truncateSync } = await import('node:fs');
    expect(() => truncateSync(`/proc/self/fd/${ram.fd}`, 4096)).toThrow(/EPERM/);
    expect(() => truncateSync(`/proc/self/fd/${ram.fd}`, 2 * MIB)).toThrow(/EPERM/);
    expect(ram.bytes[MIB - 1]).toBe(0);
  });

  it('detaches every view when it is closed', () => {
    const ram = GuestRam.create(0, MIB);
    const { bytes } = ram;
    ram.close();
    ram.close();
    expect(bytes.byteLength).toBe(0);
    expect(bytes[0]).toBeUndefined();
    expect(() => ram.fd).toThrow(refusal('CLOSED'));
  });

  it('keeps the guest running on memory whose views were closed', () => {
    using guest = createGuest('hello');
    guest.ram.close();
    expect(runToEnd(guest.vcpu)).toMatchObject({ text: 'Test OK\n', status: 0 });
  });

  it('is private to the process on request: without a file, and given back page by page', async () => {
    using guest = createGuest('dirty-pages', { shared: false, regs: { rdi: 0x20000n, rcx: 2n, rdx: 0x1000n } });
    const { ram } = guest;
    expect(ram.fd).toBeUndefined();
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
    expect([ram.bytes[0x20000], ram.bytes[0x21000]]).toEqual([0x55, 0x55]);
    ram.discard(0x20000, 4096);
    expect([ram.bytes[0x20000], ram.bytes[0x21000]]).toEqual([0, 0x55]);
    expect(() => ram.unmap(0, 4096)).toThrow(refusal('SYSCALL'));
    await runWorker(`GuestRam.attach(data, 0).bytes[7] = 9;`, ram.token).done;
    expect(ram.bytes[7]).toBe(9);
  });

  it.each([
    { kind: 'shared', shared: true },
    { kind: 'private', shared: false },
  ])('is given back at once when its VM is closed: $kind', ({ shared }) => {
    using guest = createGuest('hello', { shared });
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
    const code = Buffer.from(guest.ram.bytes.slice(LOAD_ADDRESS, LOAD_ADDRESS + 16));
    const isAt = ({ start }: Area) => bytesAt(start + LOAD_ADDRESS, code.length)?.equals(code);
    const [held, ...others] = [...areas().values()].filter((area) => area.sizeBytes === RAM_BYTES && isAt(area));
    expect(others).toEqual([]);
    expect(held.inode !== 0).toBe(shared);
    guest.vm.close();
    // The addresses may stay a while, with nothing behind them.
    expect(isAt(held)).not.toBe(true);
    if (shared) expect([...areas().values()].filter(({ inode }) => inode === held.inode)).toEqual([]);
  });

  it.each([
    { mib: 64, flag: 'hg' },
    { mib: 16, flag: 'nh' },
  ])('asks for huge pages where $mib MiB are private: $flag', ({ mib, flag }) => {
    const before = new Set(areas().keys());
    using ram = GuestRam.create(0, mib * MIB, { shared: false });
    const [added] = [...areas()].filter(([range, { sizeBytes }]) => !before.has(range) && sizeBytes === mib * MIB);
    expect(added[1].flags).toContain(flag);
    if (flag === 'hg') expect(added[1].start % (2 * MIB)).toBe(0);
    expect(ram.bytes[mib * MIB - 1]).toBe(0);
  });

  it('is shared with a worker that attaches by token, and taken from it when the owner closes', async () => {
    const ram = GuestRam.create(0, MIB);
    ram.bytes[0] = 42;
    const worker = runWorker(
      `const ram = GuestRam.attach(data, 0);
       const { bytes } = ram;
       const seen = bytes[0];
       bytes[1] = 43;
       parentPort.postMessage({ seen, size: ram.sizeBytes });
       await new Promise((resolve) => { const timer = setInterval(() => {
         if (bytes.byteLength === 0) { clearInterval(timer); resolve(); } }, 1); });
       let code;
       try { ram.bytes; ram.fd; } catch (error) { code = error.code; }
       parentPort.postMessage({ detached: bytes.byteLength, code });`,
      ram.token,
    );
    expect(await worker.next()).toEqual({ seen: 42, size: MIB });
    expect(ram.bytes[1]).toBe(43);
    ram.close();
    expect(await worker.next()).toEqual({ detached: 0, code: 'CLOSED' });
    await worker.done;
  });

  it('leaves the owner its views when an attached worker closes or ends', async () => {
    using ram = GuestRam.create(0, MIB);
    await runWorker(`GuestRam.attach(data, 0).bytes[7] = 9; GuestRam.attach(data, 0).close();`, ram.token).done;
    expect(ram.bytes[7]).toBe(9);
  });

  it('refuses a token that names no memory', () => {
    const ram = GuestRam.create(0, 4096);
    const { token } = ram;
    ram.close();
    expect(() => GuestRam.attach(token, 0)).toThrow(refusal('CLOSED'));
    expect(() => GuestRam.attach(2 ** 40, 0)).toThrow(refusal('CLOSED'));
  });
});

function dirtyPages(words: BigUint64Array): number[] {
  const pages: number[] = [];
  words.forEach((word, i) => {
    for (let bit = 0; bit < 64; bit++) if ((word >> BigInt(bit)) & 1n) pages.push(i * 64 + bit);
  });
  return pages;
}

/** A mapping of this process. */
interface Area {
  start: number;
  sizeBytes: number;
  /** 0 without a file. */
  inode: number;
  residentBytes: number;
  flags: string[];
}

/** This process's mappings by their range (proc(5), smaps). */
function areas(): Map<string, Area> {
  const smaps = readFileSync('/proc/self/smaps', 'utf8');
  const area = /^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)[^]*?^Rss: *(\d+) kB$[^]*?^VmFlags: (.*)$/gm;
  return new Map(
    [...smaps.matchAll(area)].map(([, from, to, inode, residentKiB, flags]) => {
      const [start, end] = [from, to].map((address) => parseInt(address, 16));
      const residentBytes = Number(residentKiB) * 1024;
      const sizeBytes = end - start;
      return [
        `${from}-${to}`,
        { start, sizeBytes, inode: Number(inode), residentBytes, flags: flags.trim().split(' ') },
      ];
    }),
  );
}

/** This process's memory; undefined where nothing is mapped. */
function bytesAt(address: number, length: number): Buffer | undefined {
  const fd = openSync('/proc/self/mem', 'r');
  try {
    const bytes = Buffer.alloc(length);
    readSync(fd, bytes, 0, length, address);
    return bytes;
  } catch {
    return undefined;
  } finally {
    closeSync(fd);
  }
}

/** The mappings of memory with a file. */
function areasOf(ram: GuestRam): Area[] {
  const { ino } = statSync(`/proc/self/fd/${ram.fd}`);
  return [...areas().values()].filter(({ inode }) => inode === ino);
}
