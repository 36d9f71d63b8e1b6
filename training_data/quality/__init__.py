"""The quality of a data set, looked at while its rows stream by: what a person would want to know
before spending GPU time, with what to do about it. Nothing here ever refuses a job."""
