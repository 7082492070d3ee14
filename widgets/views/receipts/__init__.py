"""Receipts: which earlier tokens paid for the gain of the selected one."""
