def pytest_addoption(parser):
    parser.addoption("--all-cases", action="store_true", help="benchmark every case, not only the quick ones")
