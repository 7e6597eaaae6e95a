"""Looking at what came out: functions of arrays that read no file and start no work."""
