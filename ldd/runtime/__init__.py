"""What runs anywhere need: seeds, ranks, devices, processes, progress, a ledger of costs."""
