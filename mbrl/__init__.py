"""mbrl"""
