"""The laboratory: load generation, micro benchmarks, peers measured side by side, and the demo.

Installed as ``nova_mp.bench``. Pure Python; nothing of ``nova_mp`` but the command line imports it.

=============  ==============================================================================
file           what it does
=============  ==============================================================================
units          sizes and durations as people write them ("4KiB", "100ms")
job            a job file (TOML) as frozen dataclasses; every unknown key is an error
environment    what the machine was when a result was measured
histogram      HDR latency histograms that travel between processes and into JSON
records        self-describing, checksummed blocks, and the prefix check of a snapshot
workload       operation streams: which call, on which file, at which offset
peers          other file systems behind the calls that a workload makes
arena          an arena and its engine for the time of one measurement
pool, process  client processes: started together, told things, ended in any case
loadclient     one client process of a load job
loadgen        a load job from start to result: clients, snapshots, repeats, peers
timing         fair timed loops: interleaved, prebound, without the garbage collector
micro          one attached process against the same calls of the operating system
scenarios      memory use and crash mounts, measured on arenas of their own
crowd          many workers and many processes on few cores
oracle         what a snapshot may hold, given what each client did and when
democlient     one client of the demo: imports, rewrites, records all it does
demoplan       what the demo imports on this machine, and how much fits
demoview       its progress bars, and the tables at the end
demo           the engine shown end to end on a real tree, every snapshot verified
svg, report    plots and the self-contained HTML page
run            one entry point for every kind of job file
=============  ==============================================================================
"""
