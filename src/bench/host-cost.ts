/** What the host spends on guests: processor time of this process and those below it, and exits of all guests of the host. */
import { readdir, readFile, writeFile } from 'node:fs/promises';

const TICK_NS = 1e9 / 100; // USER_HZ, in which /proc counts
const EXITS = '/sys/kernel/debug/kvm/exits';
const USER_EXITS = '/sys/kernel/debug/tracing/events/kvm/kvm_userspace_exit';

export interface HostCost {
  /** Without what guests used. */
  cpuNs: number;
  /** Where this process may read KVM's counters. */
  exits?: number;
  /** Of them those that reached a program. */
  userExits?: number;
}

/** Has the kernel count exits to user space. @returns Whether it does: root may ask for it, where there is debugfs. */
export async function countExits(): Promise<boolean> {
  try {
    await writeFile(`${USER_EXITS}/trigger`, 'hist:keys=reason');
    return true;
  } catch {
    return false;
  }
}

/** So far. */
export async function hostCost(): Promise<HostCost> {
  const [cpuNs, exits, histogram] = await Promise.all([
    cpuTime(),
    readFile(EXITS, 'utf8').catch(() => undefined),
    readFile(`${USER_EXITS}/hist`, 'utf8').catch(() => undefined),
  ]);
  const userExits = histogram === undefined ? undefined : (/Hits: (\d+)/.exec(histogram)?.[1] ?? '0');
  return {
    cpuNs,
    ...(exits !== undefined && { exits: Number(exits) }),
    ...(userExits !== undefined && { userExits: Number(userExits) }),
  };
}

async function cpuTime(): Promise<number> {
  let ticks = 0;
  for (const pid of await family(process.pid)) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
    if (stat === undefined) continue;
    // proc(5): utime, stime and guest_time are fields 14, 15 and 43; field 3 is the first behind the name.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    ticks += Number(fields[14 - 3]) + Number(fields[15 - 3]) - Number(fields[43 - 3]);
  }
  return ticks * TICK_NS;
}

async function family(pid: number): Promise<number[]> {
  const threads = await readdir(`/proc/${pid}/task`).catch(() => []);
  const pids = [pid];
  for (const thread of threads) {
    const children = await readFile(`/proc/${pid}/task/${thread}/children`, 'utf8').catch(() => '');
    for (const child of children.split(' ').filter(Boolean)) pids.push(...(await family(Number(child))));
  }
  return pids;
}
