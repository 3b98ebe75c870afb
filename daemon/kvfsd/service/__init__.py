"""Commands of attachments carried out: sessions, background tasks, quarantine, the in-process queue pair."""
