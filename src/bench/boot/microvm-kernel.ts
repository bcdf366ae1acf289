import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { VmmError } from '../../errors.js';
import { cacheDirectory, downloadPackage, ensureInstalled, exists, packageDependencies } from '../../guest/debian.js';

/** What a microVM needs of Linux; all else is left out, modules too. */
const CONFIG = [
  // the processor, under KVM
  ...['64BIT', 'SMP', 'HYPERVISOR_GUEST', 'PARAVIRT', 'KVM_GUEST', 'PVH', 'X86_X2APIC', 'X86_MPPARSE', 'RELOCATABLE'],
  ...['NO_HZ_IDLE', 'HIGH_RES_TIMERS', 'CC_OPTIMIZE_FOR_PERFORMANCE'],
  // a console, and an initramfs
  ...['PRINTK', 'TTY', 'SERIAL_8250', 'SERIAL_8250_CONSOLE', 'BLK_DEV_INITRD', 'RD_GZIP'],
  // what programs expect
  ...['BINFMT_ELF', 'BINFMT_SCRIPT', 'MULTIUSER', 'FUTEX', 'EPOLL', 'EVENTFD', 'SIGNALFD', 'TIMERFD', 'POSIX_TIMERS'],
  ...['SHMEM', 'PROC_FS', 'SYSFS', 'TMPFS', 'DEVTMPFS', 'UNIX', 'INET', 'NET'],
  // buses and devices
  ...['ACPI', 'PCI', 'PCI_MSI', 'PCI_MMCONFIG', 'VIRTIO_MENU', 'VIRTIO_PCI', 'VIRTIO_MMIO', 'VIRTIO_CONSOLE'],
  ...[
    'BLOCK',
    'BLK_DEV',
    'VIRTIO_BLK',
    'EXT4_FS',
    'NETDEVICES',
    'NET_CORE',
    'VIRTIO_NET',
    'HW_RANDOM',
    'HW_RANDOM_VIRTIO',
  ],
];

const TOOLS = [
  { programs: ['make'], package: 'make' },
  { programs: ['gcc'], package: 'gcc' },
  { programs: ['flex'], package: 'flex' },
  { programs: ['bison'], package: 'bison' },
  { programs: ['bc'], package: 'bc' },
  { programs: ['xz'], package: 'xz-utils' },
  { programs: [], files: ['/usr/include/gelf.h'], package: 'libelf-dev' },
];

/** About how many files are compiled: for the progress alone. */
const FILES = 1100;

/**
 * A kernel for microVMs, built of Debian's linux-source when it is first asked for, which takes minutes.
 *
 * @param onProgress Told what is going on, and of the compilation how much of it is done, 0 to 1.
 * @returns The path of its bzImage, in the cache. @throws VmmError "IMAGE_NOT_FOUND" where it cannot be built.
 */
export async function microvmKernel(onProgress: (what: string, done?: number) => void): Promise<string> {
  const config = CONFIG.map((name) => `CONFIG_${name}=y\n`).join('');
  const hash = createHash('sha256').update(config).digest('hex').slice(0, 16);
  const path = join(cacheDirectory(), 'bench', `microvm-kernel-${hash}`);
  if (await exists(path)) return path;

  await ensureInstalled(TOOLS, { onProgress });
  const [source] = await packageDependencies('linux-source');
  const files = join(await downloadPackage(source, { onProgress }), 'usr/src');
  const archive = (await readdir(files)).find((name) => name.endsWith('.tar.xz'));
  if (archive === undefined) throw new VmmError('IMAGE_NOT_FOUND', `package ${source} holds no source`);

  const tree = join(cacheDirectory(), 'staging', `microvm-kernel-${randomBytes(6).toString('hex')}`);
  await mkdir(tree, { recursive: true });
  try {
    onProgress(`unpacking ${archive}`);
    await execa('tar', ['-xf', join(files, archive), '-C', tree, '--strip-components=1'], { stdin: 'ignore' });
    const wanted = join(tree, 'microvm.config');
    await writeFile(wanted, config);
    const make = (...args: string[]) => execa('make', ['-C', tree, ...args], { stdin: 'ignore', stderr: 'pipe' });
    await make(`KCONFIG_ALLCONFIG=${wanted}`, 'allnoconfig');
    const chosen = new Set((await readFile(join(tree, '.config'), 'utf8')).split('\n'));
    const missing = CONFIG.filter((name) => !chosen.has(`CONFIG_${name}=y`));
    if (missing.length > 0) throw new Error(`this Linux has no ${missing.join(', ')}`);

    const compilation = make(`-j${availableParallelism()}`, 'bzImage');
    let compiled = 0;
    for await (const line of compilation) {
      if (/^ {2}CC /.test(line)) onProgress('compiling', Math.min(++compiled / FILES, 0.99));
    }
    await compilation;
    await mkdir(join(cacheDirectory(), 'bench'), { recursive: true });
    await rename(join(tree, 'arch/x86/boot/bzImage'), path);
    return path;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new VmmError('IMAGE_NOT_FOUND', `the kernel for microVMs cannot be built: ${why}`, { cause });
  } finally {
    await rm(tree, { recursive: true, force: true });
  }
}
