/** The package as its users get it: packed, installed in an empty project, imported, required, type-checked, run. */
import { execa, type Options } from 'execa';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { firmware } from '../support/firmware.js';
import { assembleKernel } from '../support/kernel.js';
import { describeKvm } from '../support/kvm.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const BIN = join(ROOT, 'node_modules/.bin');

let scratch: string;
let project: string;
let files: string[];

const inProject = (file: string, args: string[], options: Options = {}) =>
  execa(file, args, { cwd: project, timeout: 240_000, ...options });

beforeAll(async () => {
  scratch = mkdtempSync(join(tmpdir(), 'vmexit-package-'));
  project = join(scratch, 'project');
  mkdirSync(project);
  // What the tests of a checkout run on is built already; `prepare` would build it again.
  const { stdout } = await execa('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', scratch], {
    cwd: ROOT,
  });
  const [{ filename, files: packed }] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }];
  files = packed.map(({ path }) => path);
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'user', version: '1.0.0', private: true }));
  await inProject('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', join(scratch, filename)]);
  // The rest of `prepare`.
  const dist = join(project, 'node_modules/vmexit/dist');
  await execa(join(BIN, 'tsx'), [join(ROOT, 'scripts/bundle.ts'), dist], { cwd: ROOT });
}, 300_000);

afterAll(() => rmSync(scratch, { recursive: true, force: true }), 60_000);

/** Runs firmware/hello.S; the code is a program in JavaScript. */
const program = (load: string) => `
${load}
const kvm = Kvm.open();
const vm = kvm.createVm();
const ram = vm.addMemory({ gpa: 0, size: 0x10000 });
ram.bytes.set([${firmware('hello').code.join(',')}], 0x1000);
const vcpu = vm.createVcpu(0);
const sregs = vcpu.getSregs();
sregs.cs.base = 0n;
sregs.cs.selector = 0;
vcpu.setSregs(sregs);
vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x1000n });
let text = '';
for (const exit of vcpu.exits()) {
  if (exit.reason !== 'io') throw new Error(exit.reason);
  if (exit.port === 0x3f8) text += String.fromCharCode(...exit.data);
  if (exit.port === 0xf4) break;
}
vm.close();
kvm.close();
process.stdout.write(text);
`;

describe('the packed package', () => {
  it('holds what it needs to run and to build its addon, and nothing of the tests', () => {
    for (const path of ['package.json', 'README.md', 'binding.gyp', 'native/sources.txt']) {
      expect(files).toContain(path);
    }
    for (const path of ['dist/index.js', 'dist/index.d.ts', 'dist/kvm/index.js', 'dist/cli/main.js']) {
      expect(files).toContain(path);
    }
    expect(
      files.filter((path) => /^(test|firmware|benchmarks\/(?!baseline|guest|preload)|scripts|build|src)/.test(path)),
    ).toEqual([]);
    expect(files.filter((path) => path.endsWith('.node'))).toEqual([]);
  });

  it('gives its whole public API to import', async () => {
    writeFileSync(
      join(project, 'api.mjs'),
      `import * as vmexit from 'vmexit'; import * as kvm from 'vmexit/kvm'; import * as qmp from 'vmexit/qmp';
       console.log(JSON.stringify([Object.keys(vmexit), Object.keys(kvm), Object.keys(qmp)]));`,
    );
    const { stdout } = await inProject('node', ['api.mjs']);
    const [main, kvm, qmp] = JSON.parse(String(stdout)) as string[][];
    expect(qmp.sort()).toEqual(['QemuProcess', 'QmpClient', 'VmmError']);
    expect(main).toEqual(expect.arrayContaining(['MicroVM', 'VmmError']));
    expect(kvm).toEqual(
      expect.arrayContaining(['Kvm', 'Vm', 'Vcpu', 'GuestRam', 'GuestMemory', 'EventFd', 'kickVcpu']),
    );
  });

  it.each(['nodenext', 'bundler'])(
    'type-checks in a strict project with moduleResolution %s',
    async (moduleResolution) => {
      writeFileSync(
        join(project, 'typed.ts'),
        `import { MicroVM, VmmError, type MicroVMOptions } from 'vmexit';
       import { Kvm, type VmExit } from 'vmexit/kvm';
       import type { QmpClient } from 'vmexit/qmp';
       export function ports(exits: Iterable<VmExit>): number[] {
         const seen: number[] = [];
         for (const exit of exits) if (exit.reason === 'io') seen.push(exit.port); else if (exit.reason === 'mmio') seen.push(exit.gpa);
         return seen;
       }
       export const open = (): Kvm => Kvm.open();
       export const code = (error: VmmError): string => error.code;
       export const running = async (qmp: QmpClient): Promise<boolean> => (await qmp.execute('query-status')).running;
       export const create = (options: MicroVMOptions): Promise<MicroVM> => MicroVM.create(options);
       // @ts-expect-error: a port is a number
       export const wrong = (exit: Extract<VmExit, { reason: 'io' }>): string => exit.port;`,
      );
      const module = moduleResolution === 'bundler' ? 'esnext' : 'nodenext';
      const options = {
        strict: true,
        noEmit: true,
        target: 'es2022',
        lib: ['es2023', 'esnext.disposable'],
        module,
        moduleResolution,
      };
      const types = { types: ['node'], typeRoots: [join(ROOT, 'node_modules/@types')] };
      writeFileSync(
        join(project, 'tsconfig.json'),
        JSON.stringify({ compilerOptions: { ...options, ...types }, files: ['typed.ts'] }),
      );
      writeFileSync(join(project, 'package.json'), JSON.stringify({ ...userPackage(), type: 'module' }));
      const { stdout, exitCode } = await inProject(join(BIN, 'tsc'), ['-p', '.'], { reject: false });
      expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: '' });
    },
  );

  it('has a command line that npx finds', async () => {
    const { stdout } = await inProject('npx', ['--no-install', 'vmexit', '--help']);
    for (const word of ['run', 'doctor']) expect(stdout).toContain(word);
  });
});

describeKvm('the installed package', () => {
  it('runs a guest from a program that imports it', async () => {
    writeFileSync(join(project, 'guest.mjs'), program(`import { Kvm } from 'vmexit/kvm';`));
    const { stdout } = await inProject('node', ['guest.mjs']);
    expect(stdout).toBe('Test OK');
  });

  it('runs a guest from a program that requires it', async () => {
    writeFileSync(join(project, 'guest.cjs'), program(`const { Kvm } = require('vmexit/kvm');`));
    const { stdout } = await inProject('node', ['guest.cjs']);
    expect(stdout).toBe('Test OK');
  });

  it('runs machines in a worker of few files, with devices of theirs and of the user', async () => {
    const kernel = assembleKernel(
      [0x3f8, 0x700, 0xf4].map((port) => `mov dx, ${port}\nmov al, '+'\nout dx, al\n`).join('') + 'jmp .\n',
    );
    writeFileSync(
      join(project, 'device.mjs'),
      `import { VmmError } from 'vmexit';
       export default class {
         name = 'mine';
         constructor(config, host) { this.host = host; }
         read() { return 0; }
         write() { this.host.fail(new VmmError('SYSCALL', 'no more paper')); }
         reset() {}
       }`,
    );
    writeFileSync(
      join(project, 'machine.mjs'),
      `import { MicroVM } from 'vmexit';
       const module = new URL('device.mjs', import.meta.url).href;
       const vm = await MicroVM.create({
         ...{ kernel: ${JSON.stringify(kernel)}, accel: 'kvm', memory: '16M', rng: true, drives: [], balloon: true },
         devices: [{ id: 'printer', module, ports: { base: 0x700, count: 1 } }],
       });
       vm.on('deviceError', ({ device, error }) => console.log(device, error.code, error.message));
       await vm.start();
       const { debugExit } = await vm.exited;
       console.log(debugExit, Object.keys((await vm.stats()).devices).join());
       await vm.close();`,
    );
    const { stdout } = await inProject('node', ['machine.mjs']);
    expect(stdout).toBe('printer SYSCALL no more paper\n43 rng,balloon');
    const names = readdirSync(join(project, 'node_modules/vmexit/dist/machine'));
    expect(names).toEqual(expect.arrayContaining(['kvm-worker.cjs', expect.stringMatching(/^part-.*\.js$/)]));
    expect(readFileSync(join(project, 'node_modules/vmexit/dist/LICENSE.zod'), 'utf8')).toContain('MIT License');
  });
});

const userPackage = () => ({ name: 'user', version: '1.0.0', private: true, dependencies: { vmexit: '*' } });
