import type { SessionResult } from './session.js';
import { formatBytes, formatCount, formatSeconds } from './output.js';
import { columns } from './table.js';

/** What a run cost, for a person. */
export function statsTable(result: SessionResult): string {
  const { stats } = result;
  const rows: string[][] = [];
  rows.push(['accelerator', result.accelReason]);
  if (result.userSpaceMs !== undefined) rows.push(['time to user space', formatSeconds(result.userSpaceMs)]);
  rows.push(['time to the end', formatSeconds(result.runMs)]);
  rows.push(['memory', formatBytes(stats.memoryBytes)]);
  const total = Object.values(stats.exits).reduce((sum, count) => sum + count, 0);
  if (total > 0) rows.push([`exits: ${formatCount(total)}`, counts(stats.exits)]);
  if (Object.keys(stats.accesses).length > 0) rows.push(['accesses by device', counts(stats.accesses)]);
  if (stats.consoleDroppedBytes > 0) rows.push(['console output lost', formatBytes(stats.consoleDroppedBytes)]);
  return columns(rows);
}

/** The same, for a program: one line. */
export function statsJson(result: SessionResult): string {
  const { status, exit, accel, accelReason, userSpaceMs, runMs, stats } = result;
  return JSON.stringify({
    status,
    reason: exit?.reason,
    debugExit: exit?.debugExit,
    accel,
    accelReason,
    userSpaceMs,
    runMs,
    ...stats,
  });
}

function counts(values: Readonly<Record<string, number>>): string {
  return Object.entries(values)
    .filter(([, count]) => count > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([name, count]) => `${name} ${formatCount(count)}`)
    .join(', ');
}
