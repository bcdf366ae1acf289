/**
 * HOSTILE case 25: random calls with random arguments on every object of vmexit/kvm, in the order a fuzzer finds. Prints
 * the seed first: a crash of this process is the failure, and the seed repeats it. Arguments: seed, runs, threads that do this
 * at the same time (numbers among the arguments name each other's memory and vCPUs by chance). With TRACE in the environment
 * every call is written to stderr before it is made.
 */
import { writeSync } from 'node:fs';
import { inspect } from 'node:util';
import { isMainThread, Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { EventFd, GuestRam, Kvm, kickVcpu, VmmError, type Vcpu, type Vm } from 'vmexit/kvm';

const TRACE = process.env['TRACE'] !== undefined;
const describe = (value: unknown) =>
  inspect(value, { depth: 1, maxArrayLength: 4, breakLength: Infinity, compact: true });

const [seed, numRuns, threads] = process.argv.slice(2).map(Number);

type Target = 'Kvm' | 'Vm' | 'Vcpu' | 'GuestRam' | 'EventFd' | 'GuestMemory' | 'functions';

/** What has been made so far, closed or not: calls go to a random one of them. */
class World {
  readonly objects: Record<Target, object[]> = {
    Kvm: [Kvm.open()],
    Vm: [],
    Vcpu: [],
    GuestRam: [],
    EventFd: [new EventFd()],
    GuestMemory: [],
    functions: [functions],
  };
  calls = 0;

  constructor() {
    const vm = (this.objects.Kvm[0] as Kvm).createVm();
    this.adopt(vm);
    this.adopt(vm.addMemory({ gpa: 0, size: 0x10000 }));
    this.adopt(vm.createVcpu(0));
  }

  adopt(object: unknown): void {
    if (typeof object !== 'object' || object === null) return;
    const list = this.objects[object.constructor.name as Target];
    if (list && object.constructor.name !== 'Object' && !list.includes(object) && list.length < 4) {
      list.push(object);
      if (object.constructor.name === 'Vm') this.objects.GuestMemory.push((object as Vm).memory);
    }
  }

  closeAll(): void {
    for (const list of Object.values(this.objects)) {
      for (const object of list) if (Symbol.dispose in object) (object as Disposable)[Symbol.dispose]();
    }
  }
}

const functions = {
  kickVcpu,
  createRam: (...args: unknown[]) => GuestRam.create(...(args as [number, number])),
  attachRam: (...args: unknown[]) => GuestRam.attach(...(args as [number, number])),
  openKvm: (...args: unknown[]) => Kvm.open(...(args as [string])),
  newEventFd: () => new EventFd(),
};

/** Every method, getter and setter of the object, by name. */
function members(object: object): string[] {
  const names = new Set<string>();
  for (let at: object | null = object; at && at !== Object.prototype; at = Object.getPrototypeOf(at) as object | null) {
    for (const name of Object.getOwnPropertyNames(at)) if (name !== 'constructor') names.add(name);
  }
  return [...names].sort();
}

const number = fc.constantFrom(
  ...[0, 1, 2, 4, 5, 24, 255, 4096, 0x1000, 0x10000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 2 ** 32, 2 ** 40, 2 ** 52],
  ...[2 ** 53, 2 ** 64, 1e300, -1, -4096, 0.5, NaN, Infinity, -Infinity, -0],
);
const bigint = fc.constantFrom(
  0n,
  1n,
  4096n,
  -1n,
  2n ** 32n,
  2n ** 52n,
  2n ** 63n,
  2n ** 64n - 1n,
  2n ** 64n,
  2n ** 200n,
);
const strange = fc.constantFrom<unknown>(
  ...[undefined, null, '', '0', 'ioapic', '/dev/null', true, Symbol('s'), {}, [], () => {}, new Date(0)],
  ...[new Uint8Array(0), new Uint8Array(7), new Uint8Array(1024), new Uint8Array(4096), new Float64Array(2)],
  ...[new ArrayBuffer(8), new Array(300).fill(0), [{}], [{ index: 0x10, data: 0n }], new Proxy({}, {})],
);
/** Keys that methods look for, with whatever values. */
const options = fc.dictionary(
  fc.constantFrom(
    ...[
      'gpa',
      'size',
      'ram',
      'readOnly',
      'logDirtyPages',
      'eventFd',
      'resampleFd',
      'gsi',
      'address',
      'space',
      'length',
    ],
    ...['datamatch', 'singleStep', 'breakpoints', 'channels', 'flags', 'clock', 'rip', 'type', 'chip', 'pin', 'data'],
  ),
  fc.oneof(number, bigint, fc.constantFrom<unknown>('pio', 'mmio', 'msi', 'irqchip', undefined, null, [], {})),
);
const argument = fc.oneof(
  { weight: 4, arbitrary: number },
  { weight: 2, arbitrary: bigint },
  { weight: 2, arbitrary: strange },
  { weight: 2, arbitrary: options },
  // An object of the world, alive or closed; or what one of them returned.
  { weight: 3, arbitrary: fc.record({ world: fc.constantFrom<Target>('Kvm', 'Vm', 'Vcpu', 'GuestRam', 'EventFd') }) },
);
const call = fc.record({
  target: fc.constantFrom<Target>('Kvm', 'Vm', 'Vm', 'Vcpu', 'Vcpu', 'GuestRam', 'EventFd', 'GuestMemory', 'functions'),
  which: fc.nat(3),
  member: fc.nat(99),
  args: fc.array(argument, { maxLength: 4 }),
  // Gives a method what its own getter said, so that deep paths are reached, too.
  echo: fc.boolean(),
});
type Call = typeof call extends fc.Arbitrary<infer T> ? T : never;

/** What was thrown that is neither VmmError nor TypeError. */
const violations = new Set<string>();

/** Calls that may not be made by chance: they would block, or end what this program needs. */
const RUNS = ['run', 'runRaw', 'runInline', 'exits'];

function perform(world: World, { target, which, member, args, echo }: Call): void {
  const list = world.objects[target];
  const object = list[which % Math.max(1, list.length)] as Record<string, unknown> | undefined;
  if (!object) return;
  const names = members(object);
  const name = names[member % names.length];
  // close() comes by chance one time in many, not one in ten: what comes after it is a known state.
  const values = args.map((value) => {
    if (typeof value === 'object' && value !== null && 'world' in value) {
      const candidates = world.objects[value.world as Target];
      return candidates[which % Math.max(1, candidates.length)];
    }
    return value;
  });
  world.calls++;
  if (TRACE) writeSync(2, `${target}[${which % list.length}].${name}(${values.map(describe).join(', ')})\n`);
  try {
    if (RUNS.includes(name)) {
      // A guest of zeroes (`add %al, (%bx,%si)`) runs on for ever: kicked, so that it ends.
      (object as unknown as Vcpu).kick();
      if (name === 'exits') (object as unknown as Vcpu).exits().next();
      else (object[name] as (...args: unknown[]) => unknown)(...(values.length > 0 ? values : [1]));
      return;
    }
    const descriptor = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(object) as object, name);
    if (descriptor?.get) {
      world.adopt(object[name]);
      return;
    }
    const method = object[name];
    if (typeof method !== 'function') return;
    if (echo && name.startsWith('set')) {
      const getter = object[name.replace(/^set/, 'get')];
      if (typeof getter === 'function') values[values.length === 2 ? 1 : 0] = (getter as () => unknown).call(object);
    }
    world.adopt((method as (...args: unknown[]) => unknown).apply(object, values));
  } catch (error) {
    if (error instanceof VmmError || error instanceof TypeError) return;
    violations.add(`${target}.${name}: ${(error as Error).stack ?? String(error)}`.split('\n').slice(0, 3).join('\n'));
  }
}

function fuzz(): void {
  let calls = 0;
  fc.assert(
    fc.property(fc.array(call, { minLength: 5, maxLength: 60, size: 'max' }), (sequence) => {
      const world = new World();
      try {
        for (const step of sequence) perform(world, step);
      } finally {
        world.closeAll();
        calls += world.calls;
      }
    }),
    { seed, numRuns, endOnFailure: true },
  );
  writeSync(1, `${JSON.stringify({ seed, calls, violations: [...violations] })}\n`);
}

if (isMainThread) {
  for (let i = 1; i < threads; i++) {
    const program = `import('tsx/esm/api').then(({ register }) => { register(); return import('${import.meta.url}'); })`;
    new Worker(program, { eval: true, argv: [seed + i, numRuns, 1], execArgv: [] });
  }
}
fuzz();
