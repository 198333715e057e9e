"""What people write in flags, turned into values. Pure; every complaint says what, where and what to write instead."""
