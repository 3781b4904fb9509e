"""The lab: keeps and shows what the core measures. The core never imports it."""
