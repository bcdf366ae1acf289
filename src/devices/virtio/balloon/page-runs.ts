/** Page numbers in any order as runs of consecutive ones, in ascending order; each page counts once. */
export function pageRuns(pages: Uint32Array): { first: number; count: number }[] {
  const runs: { first: number; count: number }[] = [];
  for (const page of pages.toSorted()) {
    const last = runs.at(-1);
    if (last && page === last.first + last.count) last.count++;
    else if (!last || page > last.first + last.count) runs.push({ first: page, count: 1 });
  }
  return runs;
}
